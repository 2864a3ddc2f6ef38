//! Filters that change bodies.

use std::io::Read;

use bytes::Bytes;
use http::Method;
use proxy_config::model::http::filters::{
    Compressor, CompressorDirection, CompressorLibrary, CompressorPerRoute, ContentTypes,
};

use super::limits::clustered;
use super::*;
use crate::http::Body;
use crate::http::testing::{frames, header_map, read, request};

const GZIP: CompressorLibrary = CompressorLibrary::Gzip { level: None, window_bits: 12, chunk_size: 4_096 };
const BROTLI: CompressorLibrary =
    CompressorLibrary::Brotli { quality: 3, window_bits: 18, chunk_size: 4_096 };
const ZSTD: CompressorLibrary =
    CompressorLibrary::Zstd { level: 3, enable_checksum: true, chunk_size: 4_096 };

fn direction() -> CompressorDirection {
    CompressorDirection { enabled: true, min_content_length: 30, content_type: ContentTypes::Default }
}

fn compressor(library: CompressorLibrary) -> Compressor {
    Compressor {
        library,
        library_name: "lib".into(),
        request: None,
        response: direction(),
        disable_on_etag_header: false,
        weaken_etag_on_compress: false,
        remove_accept_encoding_header: true,
        uncompressible_response_codes: vec![206],
        status_header_enabled: false,
        choose_first: false,
    }
}

fn plain(encoding: Option<&str>, body: &Bytes) -> Vec<u8> {
    let mut out = Vec::new();
    match encoding {
        None => out.extend_from_slice(body),
        Some("gzip") => drop(flate2::read::MultiGzDecoder::new(&body[..]).read_to_end(&mut out).unwrap()),
        Some("br") => drop(brotli::Decompressor::new(&body[..], 4_096).read_to_end(&mut out).unwrap()),
        Some("zstd") => out = zstd::decode_all(&body[..]).unwrap(),
        Some(other) => panic!("{other}"),
    }
    out
}

#[tokio::test]
async fn responses_are_compressed() {
    let long = "a long text, ".repeat(100);
    for (library, encoding, name) in
        [(GZIP, "gzip", "gzip"), (BROTLI, "br", "brotli"), (ZSTD, "zstd", "zstd")]
    {
        let rig = rig(FilterKind::Compressor(Box::new(compressor(library))), None);
        let mut stream = rig.with("/", &[("accept-encoding", encoding)]);
        let trailers = header_map(&[("x-t", "1")]);
        let sent = rig.exchange(&mut stream, |stream| {
            let headers = [("content-type", "text/plain; x"), ("etag", "\"strong\""), ("vary", "x-a")];
            respond(stream, 200, &headers, "");
            let (one, other) = long.as_bytes().split_at(500);
            stream.response_body = frames(&[one, other], Some(trailers.clone()));
        });
        let sent = sent.await.unwrap();
        assert_eq!(sent.header("content-encoding"), Some(encoding));
        assert_eq!((sent.header("vary"), sent.header("etag")), (Some("x-a, Accept-Encoding"), None));
        assert_eq!(plain(Some(encoding), &sent.body), long.as_bytes(), "{encoding}");
        assert_eq!(sent.trailers, Some(trailers));
        assert!(!stream.request().headers.contains_key("accept-encoding"));
        let stat = |what: &str| rig.stat(&format!("http.test.compressor.lib.{name}.{what}"));
        assert_eq!((stat("compressed"), stat("not_compressed"), stat("header_compressor_used")), (1, 0, 1));
        assert_eq!(
            (stat("total_uncompressed_bytes"), stat("total_compressed_bytes")),
            (1_300, sent.body.len() as u64)
        );
    }
}

#[tokio::test]
async fn what_is_compressed() {
    let long: &str = &"x".repeat(100);
    let length: &[(&str, &str)] = &[("content-length", "100")];
    // What the client accepts, the response: whether it is compressed, and says so to caches.
    let table: [(Option<&str>, u16, &[(&str, &str)], bool, bool); 12] = [
        (Some("gzip"), 200, length, true, true),
        (Some("gzip"), 200, &[], true, true),
        (Some("br"), 200, length, false, true),
        (None, 200, length, false, true),
        (Some("gzip"), 200, &[("content-length", "29")], false, false),
        (Some("gzip"), 206, &[], false, false),
        (Some("gzip"), 200, &[("content-type", "image/png")], false, false),
        (Some("gzip"), 200, &[("content-type", "Application/JSON ; a")], true, true),
        (Some("gzip"), 200, &[("content-encoding", "br")], false, false),
        (Some("gzip"), 200, &[("cache-control", "a, no-transform")], false, false),
        (Some("gzip"), 200, &[("vary", "ACCEPT-encoding")], true, true),
        (Some("gzip;q=0"), 200, &[], false, true),
    ];
    for (accepts, status, headers, compressed, varies) in table {
        let rig = rig(FilterKind::Compressor(Box::new(compressor(GZIP))), None);
        let asked: Vec<_> = accepts.map(|accepts| ("accept-encoding", accepts)).into_iter().collect();
        let mut stream = rig.with("/", &asked);
        let body = long.to_owned();
        let sent = rig.exchange(&mut stream, |stream| respond(stream, status, headers, body)).await.unwrap();
        let encoding = sent.header("content-encoding").filter(|encoding| *encoding == "gzip");
        assert_eq!(encoding.is_some(), compressed, "{accepts:?} {headers:?}");
        assert_eq!(plain(encoding, &sent.body), long.as_bytes());
        assert_eq!(sent.header("vary").is_some(), varies, "{accepts:?} {headers:?}");
        assert!(!compressed || sent.header("content-length").is_none());
    }
}

#[tokio::test]
async fn routes_and_requests() {
    let off =
        Compressor { response: CompressorDirection { enabled: false, ..direction() }, ..compressor(GZIP) };
    let library = Some(BROTLI);
    let on = CompressorPerRoute::Enabled { remove_accept_encoding_header: Some(false), library };
    for (model, said, encoding) in
        [(compressor(GZIP), CompressorPerRoute::Disabled, None), (off, on, Some("br"))]
    {
        let rig = rig(FilterKind::Compressor(Box::new(model)), Some(PerRoute::Compressor(said)));
        let mut stream = rig.with("/", &[("accept-encoding", "gzip, br")]);
        let sent =
            rig.exchange(&mut stream, |stream| respond(stream, 200, &[], "x".repeat(100))).await.unwrap();
        assert_eq!(sent.header("content-encoding"), encoding);
        assert!(stream.request().headers.contains_key("accept-encoding"));
    }
    let both = Compressor { request: Some(direction()), ..compressor(ZSTD) };
    let rig = rig(FilterKind::Compressor(Box::new(both)), None);
    let mut stream =
        rig.stream(request(Method::POST, "/", &[("content-length", "100")]), Body::full("x".repeat(100)));
    ask(&rig, &mut stream).await;
    let head = stream.request();
    assert_eq!(
        (head.headers.get("content-encoding").unwrap(), head.headers.len()),
        (&"zstd".parse().unwrap(), 1)
    );
    let (body, _) = read(stream.request_body.take()).await.unwrap();
    assert_eq!(plain(Some("zstd"), &body), "x".repeat(100).as_bytes());
    assert_eq!(rig.stat("http.test.compressor.lib.zstd.request.compressed"), 1);
}

const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 7, 8];
/// The message, then `grpc-status:0`.
const WITH_TRAILERS: &[u8] = b"\0\0\0\0\x02\x07\x08\x80\0\0\0\x0fgrpc-status:0\r\n";

#[tokio::test]
async fn grpc_web() {
    use base64::Engine;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let asked = base64(MESSAGE);
    let text = format!("{}{}", base64(MESSAGE), base64(&WITH_TRAILERS[MESSAGE.len()..]));
    let table: [(&str, &str, Vec<&[u8]>, &[u8]); 3] = [
        ("application/grpc-web+proto", "", vec![MESSAGE], WITH_TRAILERS),
        ("application/grpc-web-text", "", vec![asked.as_bytes()], WITH_TRAILERS),
        (
            "application/grpc-web-text",
            "application/grpc-web-text",
            asked.as_bytes().chunks(3).collect(),
            text.as_bytes(),
        ),
    ];
    for (content_type, accept, body, answer) in table {
        let rig = clustered(FilterKind::GrpcWeb, "up");
        let headers = [("content-type", content_type), ("accept", accept), ("content-length", "9")];
        let mut stream = rig.stream(request(Method::POST, "/a.S/Get", &headers), frames(&body, None));
        let sent = rig.exchange(&mut stream, |stream| {
            respond(stream, 200, &[("content-type", "application/grpc")], "");
            let (one, other) = MESSAGE.split_at(4);
            stream.response_body = frames(&[one, other], Some(header_map(&[("grpc-status", "0")])));
        });
        let sent = sent.await.unwrap();
        assert_eq!((&sent.body[..], &sent.trailers), (answer, &None), "{content_type} {accept}");
        let head = &stream.request().headers;
        let values = ["content-type", "te", "content-length"]
            .map(|name| head.get(name).map(|value| value.to_str().unwrap()));
        assert_eq!(values, [Some("application/grpc"), Some("trailers"), None]);
        assert_eq!(&read(stream.request_body.take()).await.unwrap().0[..], MESSAGE);
        assert_eq!(rig.stat("cluster.up.grpc-web.a.S.Get.success"), 1);
    }
}

#[tokio::test]
async fn grpc_web_of_what_is_no_grpc() {
    let rig = rig(FilterKind::GrpcWeb, None);
    let headers = [("content-type", "application/grpc-web-text")];
    let mut stream = rig.stream(request(Method::POST, "/a.S/Get", &headers), frames(&[b"AAA"], None));
    let sent = rig.exchange(&mut stream, |stream| respond(stream, 503, &[], "no\nway %"));
    let sent = sent.await.unwrap();
    assert_eq!((sent.status, sent.text()), (503, ""));
    let values = ["grpc-status", "grpc-message", "content-type"].map(|name| sent.header(name).unwrap());
    assert_eq!(values, ["14", "no%0Away %25", "application/grpc-web+proto"]);
    let reset = read(stream.request_body.take()).await.unwrap_err();
    assert_eq!(reset.details, "grpc_base_64_decode_failed_bad_size");
}
