use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::net::wire::Wire;
use crate::network::starttls::testing::{HELLO, Mask, masked};

fn switch() -> Switch {
    Switch::new(Box::new(Mask::default()))
}

#[tokio::test]
async fn it_is_raw_until_a_filter_asks_for_tls_and_never_again() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut switch = switch();
    let mut wire = Wire::new(Socket::Unix(&near), Some(&mut switch));
    poll_fn(|cx| wire.poll_ready(cx)).await.unwrap();
    wire.write_all(b"220 hi").await.unwrap();
    let mut heard = [0; 6];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"220 hi");

    far.write_all(HELLO).await.unwrap();
    wire.secure().await.unwrap();
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, HELLO);
    wire.write_all(b"secret").await.unwrap();
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, *masked(b"secret"));
    far.write_all(&masked(b"answer")).await.unwrap();
    wire.read(&mut heard).await.unwrap();
    assert_eq!(&heard, b"answer");

    let again = wire.secure().await.unwrap_err();
    assert_eq!(again.to_string(), "the transport socket cannot turn to TLS");
}

#[tokio::test]
async fn what_is_in_the_socket_at_the_switch_is_no_data_of_the_session() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut switch = switch();
    let mut wire = Wire::new(Socket::Unix(&near), Some(&mut switch));
    far.write_all(b"MAIL FROM:<mallory@test>\r\n").await.unwrap();
    let failure = wire.secure().await.unwrap_err();
    assert_eq!(failure.to_string(), "TLS_error: wrong version number");
}

/// Says that it has ended.
struct Ends(Arc<std::sync::atomic::AtomicUsize>);

impl Transport for Ends {
    fn poll_ready(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }
    fn poll_read(&mut self, _: &mut Context<'_>, _: Socket<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
    fn poll_write(&mut self, _: &mut Context<'_>, _: Socket<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }
    fn poll_flush(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn closed(&mut self, _: Socket<'_>, _: CloseEvent) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test]
async fn tls_that_never_began_does_not_end() {
    let (near, _far) = UnixStream::pair().unwrap();
    for (secure, ends) in [(false, 0), (true, 1)] {
        let ended = Arc::default();
        let mut switch = Switch::new(Box::new(Ends(Arc::clone(&ended))));
        assert!(!secure || switch.start_secure());
        assert!(!secure || !switch.start_secure(), "twice");
        switch.closed(Socket::Unix(&near), CloseEvent::Local);
        assert_eq!(ended.load(std::sync::atomic::Ordering::Relaxed), ends);
    }
}
