//! Writes what is made of protobuf sources: `cargo run -p proxy-config --example gen_protos [-- --check]`.
//!
//! - `proto/envoy.fds`: the descriptors that envoy-types was generated from, without comments. They are cut on the
//!   wire, since decoding would lose the options that are extensions (`udpa.annotations.sensitive`).
//! - `proto/istio.fds` and `src/proto/generated`: our own few `.proto` files.
//!
//! With `--check` nothing is written, and a difference is an error.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    match generate().and_then(|files| if check { compare(&files) } else { write(&files) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("gen_protos: {e}");
            ExitCode::FAILURE
        }
    }
}

/// All files, by their path.
fn generate() -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let envoy_types = crate_dir("envoy-types")?;
    let mut files = BTreeMap::new();
    let types = fs::read(envoy_types.join("src/generated/types.bin"))?;
    files.insert(own.join("proto/envoy.fds"), without_comments(&types)?);

    let istio = compile(&own.join("proto"), &envoy_types.join("proto"))?;
    let set = |file: Vec<_>| prost_types::FileDescriptorSet { file };
    let (imported, ours): (Vec<_>, Vec<_>) = istio.file.into_iter().partition(|f| f.name().contains('/'));
    files.insert(own.join("proto/istio.fds"), set(ours.clone()).encode_to_vec());
    let typed = ours.into_iter().filter(|f| !f.dependency.iter().any(|d| d.starts_with("envoy/")));
    let imported = imported.into_iter().filter(|f| f.name().starts_with("google/protobuf/"));
    for (name, code) in rust(set(imported.chain(typed).collect()))? {
        files.insert(own.join("src/proto/generated").join(name), code);
    }
    Ok(files)
}

/// The types of messages that the daemon looks into, by file name.
fn rust(set: prost_types::FileDescriptorSet) -> Result<Vec<(OsString, Vec<u8>)>> {
    let out = tempfile::tempdir()?;
    let mut config = prost_build::Config::new();
    config.out_dir(out.path()).include_file("mod.rs").enable_type_names().compile_well_known_types();
    config.extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf");
    config.compile_fds(set)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(out.path())? {
        let entry = entry?;
        files.push((entry.file_name(), fs::read(entry.path())?));
    }
    Ok(files)
}

/// Where cargo unpacked a dependency.
fn crate_dir(name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    // Without a platform, cargo wants the dependencies of all of them.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--manifest-path", manifest])
        .args(["--filter-platform", &platform])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let found = packages.iter().find(|p| p["name"] == name).ok_or("no such dependency")?;
    let manifest = found["manifest_path"].as_str().ok_or("a package without a manifest")?;
    Ok(Path::new(manifest).parent().ok_or("a manifest without a directory")?.to_owned())
}

/// Our own files, and what they import.
fn compile(own: &Path, others: &Path) -> Result<prost_types::FileDescriptorSet> {
    let mut names = Vec::new();
    for entry in fs::read_dir(own)? {
        let name = entry?.file_name().into_string().map_err(|_| "a file name that is not UTF-8")?;
        if name.ends_with(".proto") {
            names.push(name);
        }
    }
    names.sort();
    let roots = ["data-plane-api", "xds", "protoc-gen-validate", "googleapis"].map(|dir| others.join(dir));
    let mut set = protox::compile(&names, roots.iter().map(PathBuf::as_path).chain([own]))?;
    for file in &mut set.file {
        file.source_code_info = None;
    }
    Ok(set)
}

/// A descriptor set without `source_code_info`, and otherwise byte for byte.
fn without_comments(set: &[u8]) -> Result<Vec<u8>> {
    const FILE: u32 = 1;
    const SOURCE_CODE_INFO: u32 = 9;
    let mut out = Vec::new();
    for (tag, file) in messages(set)? {
        let mut kept = Vec::new();
        for (tag, content) in fields(file)? {
            if tag != SOURCE_CODE_INFO {
                kept.extend_from_slice(content);
            }
        }
        if tag == FILE {
            encode_key(FILE, WireType::LengthDelimited, &mut out);
            encode_varint(kept.len() as u64, &mut out);
            out.extend_from_slice(&kept);
        }
    }
    Ok(out)
}

/// The length-delimited fields of a message: number and content.
fn messages(mut bytes: &[u8]) -> Result<Vec<(u32, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (tag, _) = decode_key(&mut bytes)?;
        let length = usize::try_from(decode_varint(&mut bytes)?)?;
        let (content, rest) = bytes.split_at_checked(length).ok_or("truncated")?;
        found.push((tag, content));
        bytes = rest;
    }
    Ok(found)
}

/// The fields of a `FileDescriptorProto`: number, and the bytes with their key.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u32, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let start = bytes;
        let (tag, wire) = decode_key(&mut bytes)?;
        let value = decode_varint(&mut bytes)?;
        if wire == WireType::LengthDelimited {
            bytes = bytes.get(usize::try_from(value)?..).ok_or("truncated")?;
        }
        found.push((tag, &start[..start.len() - bytes.len()]));
    }
    Ok(found)
}

fn write(files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for (path, content) in files {
        fs::create_dir_all(path.parent().ok_or("a file without a directory")?)?;
        fs::write(path, content)?;
    }
    Ok(())
}

fn compare(files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let mut stale = files.iter().filter(|(path, content)| fs::read(path).ok().as_ref() != Some(*content));
    match stale.next() {
        Some((path, _)) => Err(format!("{} is not what the sources make", path.display()).into()),
        None => Ok(()),
    }
}
