//! By HTTP/1.1.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Conn, End, Plan};

/// What can be cut off.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

pub(super) async fn serve(stream: impl Socket, conn: Conn) {
    let mut stream = BufReader::new(stream);
    // A client that goes is no failure of the backend.
    while let Ok(true) = exchange(&mut stream, &conn).await {}
}

/// Says whether another one may follow.
async fn exchange(stream: &mut BufReader<impl Socket>, conn: &Conn) -> Result<bool> {
    let (line, headers) = head(stream).await?;
    let is_head = line.starts_with("HEAD ");
    let (seen, plan) = conn.begins(line, headers.clone());
    let mut got = 0;
    if !plan.early {
        let read = body(stream, &headers, &mut got).await;
        conn.ends(seen, got, read.is_err().then_some("broken"));
        read?;
    }
    tokio::time::sleep(plan.wait).await;
    match plan.end {
        End::Reset(_) => return reset(stream),
        End::Close => return Ok(false),
        End::Silent => {
            let _ = stream.read(&mut [0]).await;
            return Ok(false);
        }
        End::Garbage => {
            stream.write_all(b"this is no response\r\n\r\n").await?;
            return Ok(false);
        }
        End::Whole | End::HalfReset(_) | End::HalfClose => {}
    }
    respond(stream, &plan, is_head).await
}

fn reset(stream: &BufReader<impl Socket>) -> Result<bool> {
    socket2::SockRef::from(stream.get_ref().tcp()).set_linger(Some(Duration::ZERO))?;
    Ok(false)
}

async fn head(stream: &mut BufReader<impl Socket>) -> Result<(String, BTreeMap<String, String>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in lines.iter().skip(1).filter_map(|line| line.split_once(':')) {
        let all = headers.entry(name.to_ascii_lowercase()).or_default();
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(value.trim());
    }
    Ok((lines.first().cloned().unwrap_or_default(), headers))
}

async fn body(
    stream: &mut BufReader<impl Socket>,
    headers: &BTreeMap<String, String>,
    got: &mut usize,
) -> Result<()> {
    let invalid = |_| Error::from(ErrorKind::InvalidData);
    if headers.contains_key("transfer-encoding") {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(invalid)?;
            read(stream, size, got).await?;
            // Trailers are not looked at.
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            if size == 0 {
                return Ok(());
            }
        }
    }
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse()).map_err(invalid)?;
    read(stream, length, got).await
}

async fn read(stream: &mut BufReader<impl Socket>, mut left: usize, got: &mut usize) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    while left > 0 {
        let n = left.min(buffer.len());
        let n = stream.read(&mut buffer[..n]).await?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        left -= n;
        *got += n;
    }
    Ok(())
}

async fn respond(stream: &mut BufReader<impl Socket>, plan: &Plan, is_head: bool) -> Result<bool> {
    let body = plan.body();
    let mut text = format!("HTTP/1.1 {} Said\r\n", plan.status);
    for (name, value) in &plan.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if plan.last {
        text += "connection: close\r\n";
    }
    let chunked = !plan.trailers.is_empty();
    if chunked {
        text += "transfer-encoding: chunked\r\n\r\n";
    } else {
        text += &format!("content-length: {}\r\n\r\n", body.len());
    }
    if is_head {
        stream.write_all(text.as_bytes()).await?;
        return Ok(!plan.last);
    }
    let mut bytes = text.into_bytes();
    if chunked {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    }
    let (first, second) = body.split_at(body.len() / 2);
    bytes.extend_from_slice(first);
    let halved = plan.end != End::Whole || !plan.pause.is_zero();
    if halved {
        stream.write_all(&std::mem::take(&mut bytes)).await?;
        stream.flush().await?;
        tokio::time::sleep(plan.pause.max(Duration::from_millis(20))).await;
    }
    match plan.end {
        End::HalfReset(_) => return reset(stream),
        End::HalfClose => return Ok(false),
        End::Whole | End::Reset(_) | End::Close | End::Silent | End::Garbage => {}
    }
    bytes.extend_from_slice(second);
    if chunked {
        bytes.extend_from_slice(b"\r\n0\r\n");
        for (name, value) in &plan.trailers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
    }
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(!plan.last)
}
