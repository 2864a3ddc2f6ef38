//! nginx with a few pages, as a backend.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::Lab;
use crate::ports;
use crate::process::{Place, Process};
use crate::wait::eventually;

/// Ends with this.
pub struct Nginx {
    pub address: SocketAddr,
    process: Process,
}

impl Nginx {
    /// One that serves these files, by their names below its root.
    pub fn pages(lab: &Lab, name: &str, pages: &[(&str, &str)]) -> Result<Self> {
        let root = lab.dir().join(name).join("html");
        fs::create_dir_all(&root)?;
        for (page, text) in pages {
            fs::write(root.join(page), text)?;
        }
        Self::server(lab, name, &format!("root {};", root.display()))
    }

    /// One with that `server` block, but for its `listen`.
    pub fn server(lab: &Lab, name: &str, block: &str) -> Result<Self> {
        Self::listening(lab, name, "", block)
    }

    /// With further words of `listen`, such as `http2` or `ssl`.
    pub fn listening(lab: &Lab, name: &str, words: &str, block: &str) -> Result<Self> {
        // nginx takes no port from the kernel by itself.
        let address = ports::free()?;
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir)?;
        let own = dir.display();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {own}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
             http {{ access_log off; types {{ text/html html; }} client_body_temp_path {own}/body;\n\
               proxy_temp_path {own}/proxy; fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi;\n\
               scgi_temp_path {own}/scgi; server {{ listen {address} {words}; {block} }} }}\n"
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, text)?;
        let spawn = lab.program("nginx", &Place::default())?.arg("-c").arg(&file).arg("-p").arg(&dir);
        let mut nginx = Self { address, process: spawn.spawn()? };
        eventually("nginx", Duration::from_secs(10), || {
            ensure!(nginx.process.exited()?.is_none(), "nginx has ended: {}", nginx.process.stderr());
            Ok(TcpStream::connect(address)?)
        })?;
        Ok(nginx)
    }
}
