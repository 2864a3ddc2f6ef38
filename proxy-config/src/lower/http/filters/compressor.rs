//! `envoy.filters.http.compressor` and its libraries.

use envoy_types::pb::envoy::config::core::v3::{RuntimeFeatureFlag, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::compression as lib;
use envoy_types::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use envoy_types::pb::google::protobuf::UInt32Value;
use lib::brotli::compressor::v3::{Brotli, brotli};
use lib::gzip::compressor::v3::{Gzip, gzip};
use lib::zstd::compressor::v3::{Zstd, zstd};
use pb::compressor as inner;

use crate::lower::extension::{Extension, by_name};
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, Lower};
use crate::model::http::filters::{
    Compressor, CompressorDirection, CompressorLibrary, CompressorPerRoute, ContentTypes,
};

registry! {
    pb::Compressor, inner::CommonDirectionConfig, inner::RequestDirectionConfig, inner::ResponseDirectionConfig,
    pb::CompressorPerRoute, pb::CompressorOverrides, pb::ResponseDirectionOverrides, Gzip, Brotli, Zstd,
}

/// Envoy's.
const MIN_CONTENT_LENGTH: u32 = 30;
const CHUNK: u32 = 4096;

lower! { "envoy.extensions.filters.http.compressor.v3.Compressor" pb::Compressor => Compressor, cx;
    read {
        content_length, content_type, disable_on_etag_header, remove_accept_encoding_header, runtime_enabled,
        compressor_library, request_direction_config, response_direction_config, choose_first
    }
    {
        let library_name = compressor_library.as_ref().map(|library| library.name.clone()).unwrap_or_default();
        let library = match compressor_library {
            Some(library) => cx.field("compressor_library", |cx| self::library(cx, library)),
            None => {
                cx.reject("compressor_library", "is required");
                None
            }
        };
        let response = match response_direction_config {
            Some(config) => {
                for (name, given) in [
                    ("content_length", content_length.is_some()),
                    ("content_type", !content_type.is_empty()),
                    ("disable_on_etag_header", disable_on_etag_header),
                    ("remove_accept_encoding_header", remove_accept_encoding_header),
                    ("runtime_enabled", runtime_enabled.is_some()),
                ] {
                    if given {
                        cx.warn(name, "has no effect beside response_direction_config");
                    }
                }
                cx.lower("response_direction_config", config)
            }
            None => Response::old(
                cx,
                content_length,
                content_type,
                (disable_on_etag_header, remove_accept_encoding_header),
                runtime_enabled,
            ),
        };
        let request = match request_direction_config {
            Some(config) => Some(cx.lower("request_direction_config", config)?),
            None => None,
        };
        let response = response?;
        Some(Compressor {
            library: library?,
            library_name: library_name.into(),
            request,
            response: response.direction,
            disable_on_etag_header: response.disable_on_etag_header,
            weaken_etag_on_compress: response.weaken_etag_on_compress,
            remove_accept_encoding_header: response.remove_accept_encoding_header,
            uncompressible_response_codes: response.uncompressible_response_codes,
            status_header_enabled: response.status_header_enabled,
            choose_first,
        })
    }
}

/// `response_direction_config`, or the deprecated fields that were one.
#[derive(Debug)]
pub struct Response {
    direction: CompressorDirection,
    disable_on_etag_header: bool,
    weaken_etag_on_compress: bool,
    remove_accept_encoding_header: bool,
    uncompressible_response_codes: Vec<u16>,
    status_header_enabled: bool,
}

impl Response {
    fn old(
        cx: &mut Cx,
        content_length: Option<UInt32Value>,
        content_type: Vec<String>,
        (disable_on_etag_header, remove_accept_encoding_header): (bool, bool),
        runtime_enabled: Option<RuntimeFeatureFlag>,
    ) -> Option<Self> {
        let enabled = match runtime_enabled {
            Some(enabled) => cx.lower("runtime_enabled", enabled)?,
            None => true,
        };
        Some(Self {
            direction: CompressorDirection {
                enabled,
                min_content_length: number(content_length).unwrap_or(MIN_CONTENT_LENGTH),
                content_type: exact(content_type),
            },
            disable_on_etag_header,
            weaken_etag_on_compress: false,
            remove_accept_encoding_header,
            uncompressible_response_codes: Vec::new(),
            status_header_enabled: false,
        })
    }
}

fn exact(types: Vec<String>) -> ContentTypes {
    if types.is_empty() {
        return ContentTypes::Default;
    }
    ContentTypes::Exact(types.into_iter().map(Into::into).collect())
}

fn default_direction() -> CompressorDirection {
    CompressorDirection {
        enabled: true,
        min_content_length: MIN_CONTENT_LENGTH,
        content_type: ContentTypes::Default,
    }
}

lower! { "envoy.extensions.filters.http.compressor.v3.Compressor.CommonDirectionConfig"
    inner::CommonDirectionConfig => CompressorDirection, cx;
    read { enabled, min_content_length, content_type, content_type_matcher }
    {
        let enabled = match enabled {
            Some(enabled) => cx.lower("enabled", enabled)?,
            None => true,
        };
        let content_type = if content_type_matcher.is_empty() {
            exact(content_type)
        } else {
            if !content_type.is_empty() {
                cx.warn("content_type", "has no effect beside content_type_matcher");
            }
            ContentTypes::Matching(cx.list("content_type_matcher", content_type_matcher))
        };
        Some(CompressorDirection {
            enabled,
            min_content_length: number(min_content_length).unwrap_or(MIN_CONTENT_LENGTH),
            content_type,
        })
    }
}

lower! { "envoy.extensions.filters.http.compressor.v3.Compressor.RequestDirectionConfig"
    inner::RequestDirectionConfig => CompressorDirection, cx;
    read { common_config }
    {
        match common_config {
            Some(config) => cx.lower("common_config", config),
            None => Some(default_direction()),
        }
    }
}

lower! { "envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig"
    inner::ResponseDirectionConfig => Response, cx;
    read {
        common_config, disable_on_etag_header, weaken_etag_on_compress, remove_accept_encoding_header,
        uncompressible_response_codes, status_header_enabled
    }
    {
        let direction = match common_config {
            Some(config) => cx.lower("common_config", config)?,
            None => default_direction(),
        };
        let mut codes = Vec::new();
        for code in uncompressible_response_codes {
            codes.extend(cx.ranged("uncompressible_response_codes", code, 200..=599).and_then(|code| u16::try_from(code).ok()));
        }
        Some(Response {
            direction,
            disable_on_etag_header,
            weaken_etag_on_compress,
            remove_accept_encoding_header,
            uncompressible_response_codes: codes,
            status_header_enabled,
        })
    }
}

lower! { "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute" pb::CompressorPerRoute => CompressorPerRoute, cx;
    read { r#override }
    {
        use pb::compressor_per_route::Override;
        match r#override {
            Some(Override::Disabled(true)) => Some(CompressorPerRoute::Disabled),
            Some(Override::Disabled(false)) => {
                cx.reject("disabled", "must be true");
                None
            }
            Some(Override::Overrides(overrides)) => cx.lower("overrides", overrides),
            None => {
                cx.reject("override", "is required");
                None
            }
        }
    }
}

lower! { "envoy.extensions.filters.http.compressor.v3.CompressorOverrides" pb::CompressorOverrides => CompressorPerRoute, cx;
    read { response_direction_config, compressor_library }
    {
        let remove = response_direction_config.and_then(|config| cx.lower("response_direction_config", config));
        let library = match compressor_library {
            Some(library) => Some(cx.field("compressor_library", |cx| self::library(cx, library))?),
            None => None,
        };
        Some(CompressorPerRoute::Enabled { remove_accept_encoding_header: remove.flatten(), library })
    }
}

lower! { "envoy.extensions.filters.http.compressor.v3.ResponseDirectionOverrides"
    pb::ResponseDirectionOverrides => Option<bool>, cx;
    read { remove_accept_encoding_header }
    {
        let _ = cx;
        Some(remove_accept_encoding_header.map(|remove| remove.value))
    }
}

fn library(cx: &mut Cx, library: TypedExtensionConfig) -> Option<CompressorLibrary> {
    let Some(any) = library.typed_config else {
        return by_name(cx, &library.name, None);
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        Gzip::NAME => e.lower::<Gzip>(cx),
        Brotli::NAME => e.lower::<Brotli>(cx),
        Zstd::NAME => e.lower::<Zstd>(cx),
        _ => e.refuse(cx),
    }
}

fn chunk(cx: &mut Cx, size: Option<UInt32Value>) -> Option<u32> {
    cx.ranged("chunk_size", number(size).unwrap_or(CHUNK), CHUNK..=65_536)
}

lower! { "envoy.extensions.compression.gzip.compressor.v3.Gzip" Gzip => CompressorLibrary, cx;
    read { compression_level, window_bits, chunk_size, compression_strategy }
    warn { memory_level: "the encoder has one amount of memory" }
    {
        if cx.variant::<gzip::CompressionStrategy>("compression_strategy", compression_strategy)? != gzip::CompressionStrategy::DefaultStrategy {
            cx.warn("compression_strategy", "there is the default one only");
        }
        let level: gzip::CompressionLevel = cx.variant("compression_level", compression_level)?;
        let given = level != gzip::CompressionLevel::DefaultCompression;
        let level = if given { u32::try_from(i32::from(level)).ok() } else { None };
        // What Envoy refuses stays refused.
        cx.ranged("memory_level", number(memory_level).unwrap_or(5), 1..=9)?;
        let window_bits = cx.ranged("window_bits", number(window_bits).unwrap_or(12), 9..=15);
        let chunk_size = chunk(cx, chunk_size);
        Some(CompressorLibrary::Gzip {
            level,
            window_bits: window_bits?,
            chunk_size: chunk_size?,
        })
    }
}

lower! { "envoy.extensions.compression.brotli.compressor.v3.Brotli" Brotli => CompressorLibrary, cx;
    read { quality, window_bits, chunk_size, encoder_mode }
    warn {
        input_block_bits: "the encoder has its own blocks",
        disable_literal_context_modeling: "the encoder decides about it",
    }
    {
        if cx.variant::<brotli::EncoderMode>("encoder_mode", encoder_mode)? != brotli::EncoderMode::Default {
            cx.warn("encoder_mode", "there is the default one only");
        }
        let quality = cx.ranged("quality", number(quality).unwrap_or(3), 0..=11);
        let window_bits = cx.ranged("window_bits", number(window_bits).unwrap_or(18), 10..=24);
        let chunk_size = chunk(cx, chunk_size);
        Some(CompressorLibrary::Brotli { quality: quality?, window_bits: window_bits?, chunk_size: chunk_size? })
    }
}

lower! { "envoy.extensions.compression.zstd.compressor.v3.Zstd" Zstd => CompressorLibrary, cx;
    read { compression_level, enable_checksum, chunk_size, strategy }
    reject { dictionary: "dictionaries are not implemented" }
    {
        if cx.variant::<zstd::Strategy>("strategy", strategy)? != zstd::Strategy::Default {
            cx.warn("strategy", "there is the default one only");
        }
        // As the library has it: 0 is its default.
        let level = number(compression_level).filter(|level| *level > 0).unwrap_or(3).min(22);
        let chunk_size = chunk(cx, chunk_size);
        Some(CompressorLibrary::Zstd { level, enable_checksum, chunk_size: chunk_size? })
    }
}
