//! STARTTLS with what nobody here wrote: PostgreSQL and its psql, aiosmtpd and Python's smtplib, OpenSSL's s_client.

mod postgres;
mod smtp;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use shunt_tests::bootstrap::{extension, tcp_proxy};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, TlsContext};

/// A listener whose filter turns to TLS. `context`: of its clients' side, where that can turn.
fn listener(
    config: Bootstrap,
    name: &str,
    context: Option<&TlsContext>,
    filter: &str,
    cluster: &str,
) -> Bootstrap {
    let filters = [filter.to_owned(), tcp_proxy(name, &format!("cluster: {cluster:?}"))];
    let chain = match context {
        Some(context) => tls_chain("", &context.downstream_starttls(), &filters),
        None => shunt_tests::bootstrap::chain("", &filters),
    };
    config.listener(name, &format!("filter_chains: [ {chain} ]"))
}

fn filter(name: &str, of_type: &str, fields: &str) -> String {
    extension(name, of_type, fields)
}

/// Says something at once, and hears to the end.
fn blurt(to: SocketAddr, said: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    stream.write_all(said)?;
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        Ok(_) => Ok(heard),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(heard),
        Err(error) => Err(error).context("no end"),
    }
}
