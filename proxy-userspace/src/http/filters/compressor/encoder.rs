//! The libraries, alike.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use proxy_config::model::http::filters::CompressorLibrary as Library;

/// Of one body. What it has made so far is in the vector that it writes to.
pub(super) enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

/// Its name in `content-encoding`.
pub(super) fn encoding(library: Library) -> &'static str {
    match library {
        Library::Gzip { .. } => "gzip",
        Library::Brotli { .. } => "br",
        Library::Zstd { .. } => "zstd",
    }
}

impl Encoder {
    pub(super) fn new(library: Library) -> io::Result<Self> {
        Ok(match library {
            // The library has one window, which any decoder can do with.
            Library::Gzip { level, .. } => Self::Gzip(GzEncoder::new(
                Vec::new(),
                level.map_or_else(Compression::default, Compression::new),
            )),
            Library::Brotli { quality, window_bits, chunk_size } => {
                let buffer = usize::try_from(chunk_size).unwrap_or(4_096).clamp(1_024, 65_536);
                let writer = brotli::CompressorWriter::new(Vec::new(), buffer, quality, window_bits);
                Self::Brotli(Box::new(writer))
            }
            Library::Zstd { level, enable_checksum, .. } => {
                let level = i32::try_from(level).unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL);
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                encoder.include_checksum(enable_checksum)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// All that can be read of `data` so far.
    pub(super) fn flush(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let writer: &mut dyn Write = match self {
            Self::Gzip(writer) => writer,
            Self::Brotli(writer) => writer,
            Self::Zstd(writer) => writer,
        };
        writer.write_all(data)?;
        writer.flush()?;
        let made = match self {
            Self::Gzip(writer) => writer.get_mut(),
            Self::Brotli(writer) => writer.get_mut(),
            Self::Zstd(writer) => writer.get_mut(),
        };
        Ok(std::mem::take(made).into())
    }

    /// The last of it.
    pub(super) fn finish(self, data: &[u8]) -> io::Result<Bytes> {
        Ok(match self {
            Self::Gzip(mut writer) => {
                writer.write_all(data)?;
                writer.finish()?.into()
            }
            Self::Brotli(mut writer) => {
                writer.write_all(data)?;
                writer.into_inner().into()
            }
            Self::Zstd(mut writer) => {
                writer.write_all(data)?;
                writer.finish()?.into()
            }
        })
    }
}
