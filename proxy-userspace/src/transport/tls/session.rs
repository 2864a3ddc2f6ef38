//! Resumption: what lets a client come back without a full handshake.
//!
//! A session of one context must not open another: it would pass for a client that was verified by other rules. So
//! each ticket holds the [`Binding`] of its context, a hash of what Envoy's session id context is a hash of: the
//! names and issuers of the certificates, and all that clients are judged by. It also holds when it was made, so that
//! `session_timeout` holds whatever key has made it. Whoever resumes is judged again, as in Envoy.
//!
//! The content of a session is rustls's own: tickets of a real Envoy with the same keys are not understood, and the
//! client shakes hands in full.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::{ProducesTickets, StoresServerSessions};

use super::provider::now;
use crate::secret::Material;

/// SHA-256 of what a session may not outlive.
pub(super) type Binding = [u8; 32];

/// BoringSSL's default.
const TIMEOUT: Duration = Duration::from_hours(2);
/// How many sessions of TLS 1.2 a context remembers by their ids.
const SESSIONS: usize = 4096;
/// Of how many server names a client remembers which group they like.
const HINTS: usize = 64;

/// A context's tickets.
pub(super) struct Tickets {
    keys: Arc<dyn ProducesTickets>,
    binding: Binding,
    timeout: Duration,
}

impl Tickets {
    pub(super) fn new(keys: Arc<dyn ProducesTickets>, binding: Binding, timeout: Option<Duration>) -> Self {
        Self { keys, binding, timeout: timeout.unwrap_or(TIMEOUT) }
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.keys.enabled()
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.timeout.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut stamped = Vec::with_capacity(plain.len() + 40);
        stamped.extend_from_slice(&self.binding);
        stamped.extend_from_slice(&now().as_secs().to_be_bytes());
        stamped.extend_from_slice(plain);
        self.keys.encrypt(&stamped)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let stamped = self.keys.decrypt(cipher)?;
        let (binding, rest) = stamped.split_at_checked(32)?;
        let (made, plain) = rest.split_at_checked(8)?;
        let age = now().as_secs().saturating_sub(u64::from_be_bytes(made.try_into().ok()?));
        (binding == self.binding && age <= self.timeout.as_secs()).then(|| plain.to_vec())
    }
}

/// Keys that several processes share. The first encrypts, all decrypt.
pub(super) struct SharedKeys {
    keys: Vec<SharedKey>,
    random: SystemRandom,
}

/// Of 80 bytes, as Envoy has them: a name, a key to authenticate with and a key to encrypt with. Here the two are
/// joined into one, from which each ticket derives its own: so many tickets can be made with one key that nonces
/// could repeat.
struct SharedKey {
    name: [u8; NAME],
    secret: hmac::Key,
}

const NAME: usize = 16;
const SALT: usize = 16;

impl SharedKeys {
    pub(super) fn new(materials: &[Material]) -> Result<Self, String> {
        let keys = materials.iter().map(|material| {
            let wrong = || {
                let (origin, len) = (&material.origin, material.bytes.len());
                format!(
                    "session_ticket_keys: {origin}: incorrect TLS session ticket key length: {len} bytes, not 80"
                )
            };
            let (name, secret) = material.bytes.split_at_checked(NAME).ok_or_else(wrong)?;
            if secret.len() != 64 {
                return Err(wrong());
            }
            let name = name.try_into().map_err(|_| wrong())?;
            Ok(SharedKey { name, secret: hmac::Key::new(hmac::HMAC_SHA256, secret) })
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, random: SystemRandom::new() })
    }
}

impl SharedKey {
    /// The key of the ticket with this salt.
    fn derive(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let mut message = b"shunt session ticket".to_vec();
        message.extend_from_slice(salt);
        let derived = hmac::sign(&self.secret, &message);
        UnboundKey::new(&AES_256_GCM, derived.as_ref()).ok().map(LessSafeKey::new)
    }
}

impl fmt::Debug for SharedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ticket keys", self.keys.len())
    }
}

/// A ticket is the key's name, a salt, a nonce, and what they encrypt; the name and the salt are authenticated with it.
impl ProducesTickets for SharedKeys {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(TIMEOUT.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let mut salt = [0; SALT];
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut salt).ok()?;
        self.random.fill(&mut nonce).ok()?;
        let header = [key.name.as_slice(), &salt].concat();
        let mut sealed = plain.to_vec();
        key.derive(&salt)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header), &mut sealed)
            .ok()?;
        Some([header.as_slice(), &nonce, &sealed].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (header, rest) = cipher.split_at_checked(NAME + SALT)?;
        let (name, salt) = header.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let key = self.keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let plain = key.derive(salt)?.open_in_place(nonce, Aad::from(header), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

/// Sessions of TLS 1.2 that a server remembers by their ids.
pub(super) struct ServerSessions {
    timeout: Duration,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    sessions: HashMap<Vec<u8>, (u64, Vec<u8>)>,
    /// The oldest first; those taken meanwhile are among them.
    order: VecDeque<Vec<u8>>,
}

impl ServerSessions {
    pub(super) fn new(timeout: Option<Duration>) -> Self {
        Self { timeout: timeout.unwrap_or(TIMEOUT), kept: Mutex::default() }
    }

    fn is_young(&self, made: u64) -> bool {
        now().as_secs().saturating_sub(made) <= self.timeout.as_secs()
    }
}

impl fmt::Debug for ServerSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSessions").finish_non_exhaustive()
    }
}

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut kept = lock(&self.kept);
        if kept.order.len() >= SESSIONS
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.sessions.remove(&oldest);
        }
        kept.order.push_back(key.clone());
        kept.sessions.insert(key, (now().as_secs(), value));
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let kept = lock(&self.kept);
        let (made, value) = kept.sessions.get(key)?;
        self.is_young(*made).then(|| value.clone())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let (made, value) = lock(&self.kept).sessions.remove(key)?;
        self.is_young(made).then_some(value)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// What a client can resume: `max_session_keys` of all servers together, the newest first.
#[derive(Debug)]
pub(super) struct ClientSessions {
    most: usize,
    kept: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sessions: VecDeque<(ServerName<'static>, Session)>,
    hints: VecDeque<(ServerName<'static>, NamedGroup)>,
}

#[derive(Debug)]
enum Session {
    Tls12(Box<Tls12ClientSessionValue>),
    Tls13(Box<Tls13ClientSessionValue>),
}

impl ClientSessions {
    pub(super) fn new(most: usize) -> Self {
        Self { most, kept: Mutex::default() }
    }

    fn insert(&self, server: ServerName<'static>, session: Session) {
        let mut kept = lock(&self.kept);
        kept.sessions.truncate(self.most.saturating_sub(1));
        kept.sessions.push_front((server, session));
    }
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        let mut kept = lock(&self.kept);
        kept.hints.retain(|(known, _)| *known != server_name);
        kept.hints.truncate(HINTS - 1);
        kept.hints.push_front((server_name, group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        let kept = lock(&self.kept);
        kept.hints.iter().find(|(known, _)| known == server_name).map(|(_, group)| *group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.insert(server_name, Session::Tls12(Box::new(value)));
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let kept = lock(&self.kept);
        kept.sessions.iter().find_map(|(known, session)| match session {
            Session::Tls12(value) if known == server_name => Some(value.as_ref().clone()),
            Session::Tls12(_) | Session::Tls13(_) => None,
        })
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        lock(&self.kept).sessions.retain(|(known, session)| match session {
            Session::Tls12(_) => known != server_name,
            Session::Tls13(_) => true,
        });
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.insert(server_name, Session::Tls13(Box::new(value)));
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = lock(&self.kept);
        let at = kept.sessions.iter().position(|(known, session)| match session {
            Session::Tls13(_) => known == server_name,
            Session::Tls12(_) => false,
        })?;
        match kept.sessions.remove(at)?.1 {
            Session::Tls13(value) => Some(*value),
            Session::Tls12(_) => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
