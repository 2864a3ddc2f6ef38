//! A backend that answers by the path that it is asked for.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Result;

/// Its threads end with the test's process.
pub(super) fn start() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that goes is no failure of the backend.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            anyhow::ensure!(reader.read_line(&mut head)? > 0, "the end");
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let lower = head.to_ascii_lowercase();
        if lower.contains("expect: 100-continue") {
            reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        if lower.contains("transfer-encoding: chunked") {
            while !body.ends_with(b"0\r\n\r\n") && !body.ends_with(b"x-t: 1\r\n\r\n") {
                anyhow::ensure!(reader.read_until(b'\n', &mut body)? > 0, "the end");
            }
        } else if let Some(length) = lower.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            body.resize(length.parse()?, 0);
            reader.read_exact(&mut body)?;
        }
        let stream = reader.get_mut();
        match path.as_str() {
            "/early" => stream.write_all(
                b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            )?,
            "/trailers" => stream.write_all(
                b"HTTP/1.1 200 OK\r\nX-Backend: b\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
            )?,
            "/chunks" => stream.write_all(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            )?,
            "/case" => stream.write_all(b"HTTP/1.1 200 Fine Indeed\r\nX-MiXed: 1\r\ncontent-length: 0\r\n\r\n")?,
            "/204" => stream.write_all(b"HTTP/1.1 204 No Content\r\nx: 1\r\n\r\n")?,
            "/304" => stream.write_all(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n")?,
            "/close" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nabc")?;
                return Ok(());
            }
            "/cut" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")?;
                // What has come is on its way before the end of it is known.
                std::thread::sleep(Duration::from_millis(50));
                return Ok(());
            }
            "/slow" => {
                std::thread::sleep(Duration::from_millis(400));
                return Ok(());
            }
            "/pause" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")?;
                std::thread::sleep(Duration::from_millis(700));
                stream.write_all(b"cd")?;
            }
            "/ws" => {
                stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
                )?;
                return turn(reader);
            }
            _ => echo(stream, &head, &body)?,
        }
    }
}

/// The head that came, and the body behind it.
fn echo(stream: &mut TcpStream, head: &str, body: &[u8]) -> Result<()> {
    let head = head.trim_end();
    let length = head.len() + 1 + body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nx-backend: echo\r\nx-of-upstream: 1\r\ncontent-length: {length}\r\n\r\n{head}\n"
    );
    stream.write_all(&[answer.as_bytes(), body].concat())?;
    Ok(())
}

/// Turns what it gets around.
fn turn(mut reader: BufReader<TcpStream>) -> Result<()> {
    let mut buf = [0; 1024];
    loop {
        let n = reader.read(&mut buf)?;
        anyhow::ensure!(n > 0, "the end");
        buf[..n].reverse();
        reader.get_mut().write_all(&buf[..n])?;
    }
}
