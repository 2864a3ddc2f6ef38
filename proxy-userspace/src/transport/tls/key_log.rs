//! `key_log`: secrets of connections, for who reads a packet capture. One line each, in NSS's format.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use proxy_config::model::tls::KeyLog;

pub(super) struct KeyLogFile {
    file: Mutex<File>,
}

impl KeyLogFile {
    pub(super) fn open(model: &KeyLog) -> Result<Self, String> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&model.path);
        let file = file.map_err(|e| format!("key_log: {}: cannot be opened: {e}", model.path.display()))?;
        Ok(Self { file: Mutex::new(file) })
    }
}

impl fmt::Debug for KeyLogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLogFile").finish_non_exhaustive()
    }
}

impl rustls::KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut line = format!("{label} ");
        line.extend(client_random.iter().map(|byte| format!("{byte:02x}")));
        line.push(' ');
        line.extend(secret.iter().map(|byte| format!("{byte:02x}")));
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not end connections.
        let _ = file.write_all(line.as_bytes());
    }
}
