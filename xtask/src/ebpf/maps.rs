//! The map definitions of a BPF object, read from its BTF: each variable of `.maps` with all types under it.
//!
//! Sizes, flags and key and value types live only there (the `.maps` section itself is zeros), while the type
//! numbers and string offsets change with any comment. So each type is written out in full, by name.

use anyhow::{Context as _, Result, bail};

const HEADER: usize = 24;
const MAGIC: u16 = 0xeb9f;
/// Deep enough for any map; a recursive type is cut here instead of followed forever.
const MAX_DEPTH: usize = 12;

/// (map name, its definition) for each map.
pub(crate) fn definitions(section: &[u8]) -> Result<Vec<(String, String)>> {
    let btf = Btf::parse(section)?;
    let mut maps = Vec::new();
    for datasec in btf.types.iter().filter(|t| t.kind == Kind::Datasec && t.name == ".maps") {
        for member in &datasec.members {
            let variable = btf.get(member.type_id)?;
            maps.push((
                variable.name.clone(),
                format!("{} bytes: {}", member.at, btf.describe(variable.type_id, 0)?),
            ));
        }
    }
    Ok(maps)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Void,
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

struct Type {
    kind: Kind,
    name: String,
    /// Size, or for kinds that refer to a type, that type: one word serves both in BTF.
    size: u32,
    type_id: u32,
    elements: u32,
    members: Vec<Member>,
}

struct Member {
    name: String,
    type_id: u32,
    /// Bit offset of a struct's member, size of a section's variable.
    at: u32,
}

struct Btf {
    types: Vec<Type>,
}

impl Btf {
    fn parse(data: &[u8]) -> Result<Self> {
        let header = Reader { data, at: 0 };
        if data.len() < HEADER || u16::from_le_bytes([data[0], data[1]]) != MAGIC {
            bail!("section .BTF has no BTF header");
        }
        let [start, types_at, types_len, strings_at, strings_len] =
            [4, 8, 12, 16, 20].map(|at| header.peek(at));
        let part = |at: u32, len: u32| {
            let from = start as usize + at as usize;
            data.get(from..from + len as usize).context("section .BTF is cut short")
        };
        let strings = part(strings_at, strings_len)?;
        let mut reader = Reader { data: part(types_at, types_len)?, at: 0 };
        let void = Type {
            kind: Kind::Void,
            name: "void".into(),
            size: 0,
            type_id: 0,
            elements: 0,
            members: Vec::new(),
        };
        let mut types = vec![void];
        while reader.at < reader.data.len() {
            types.push(reader.read_type(strings)?);
        }
        Ok(Self { types })
    }

    fn get(&self, id: u32) -> Result<&Type> {
        self.types.get(id as usize).with_context(|| format!("BTF names type {id}, which it lacks"))
    }

    fn describe(&self, id: u32, depth: usize) -> Result<String> {
        let t = self.get(id)?;
        if depth > MAX_DEPTH {
            return Ok(format!("{:?} {} …", t.kind, t.name));
        }
        Ok(match t.kind {
            Kind::Array => format!("[{}; {}]", self.describe(t.type_id, depth + 1)?, t.elements),
            Kind::Struct | Kind::Union => {
                let mut fields = String::new();
                for m in &t.members {
                    fields += &format!("{}@{}: {}, ", m.name, m.at, self.describe(m.type_id, depth + 1)?);
                }
                format!("{:?} {} ({} bytes) {{ {fields}}}", t.kind, t.name, t.size)
            }
            Kind::Ptr
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::TypeTag
            | Kind::Var => {
                format!("{:?} {} -> {}", t.kind, t.name, self.describe(t.type_id, depth + 1)?)
            }
            Kind::Void
            | Kind::Int
            | Kind::Enum
            | Kind::Enum64
            | Kind::Fwd
            | Kind::Func
            | Kind::FuncProto
            | Kind::Datasec
            | Kind::Float
            | Kind::DeclTag => format!("{:?} {} ({} bytes)", t.kind, t.name, t.size),
        })
    }
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self, at: usize) -> u32 {
        let word = self.data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(word.unwrap_or_default())
    }

    fn word(&mut self) -> Result<u32> {
        if self.at + 4 > self.data.len() {
            bail!("section .BTF ends within a type");
        }
        self.at += 4;
        Ok(self.peek(self.at - 4))
    }

    fn read_type(&mut self, strings: &[u8]) -> Result<Type> {
        let name = string(strings, self.word()?)?;
        let info = self.word()?;
        let size = self.word()?;
        let kind = kind((info >> 24) & 0x1f)?;
        let mut t = Type { kind, name, size, type_id: size, elements: 0, members: Vec::new() };
        for _ in 0..trailing_words(kind, info & 0xffff) {
            self.read_trailer(&mut t, strings)?;
        }
        Ok(t)
    }

    /// One unit of what follows a type's three words: a member, an enumerator, an array's shape.
    fn read_trailer(&mut self, t: &mut Type, strings: &[u8]) -> Result<()> {
        match t.kind {
            Kind::Array => {
                t.type_id = self.word()?;
                self.word()?;
                t.elements = self.word()?;
            }
            Kind::Struct | Kind::Union => {
                let name = string(strings, self.word()?)?;
                let (type_id, at) = (self.word()?, self.word()?);
                t.members.push(Member { name, type_id, at });
            }
            Kind::Datasec => {
                let (type_id, _offset, at) = (self.word()?, self.word()?, self.word()?);
                t.members.push(Member { name: String::new(), type_id, at });
            }
            Kind::Enum64 => self.at += 12,
            Kind::Enum | Kind::FuncProto => self.at += 8,
            Kind::Int | Kind::Var | Kind::DeclTag => self.at += 4,
            Kind::Void
            | Kind::Ptr
            | Kind::Fwd
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::Func
            | Kind::Float
            | Kind::TypeTag => {}
        }
        Ok(())
    }
}

/// How many units follow: the count in the info word, or one for the kinds with a fixed trailer.
fn trailing_words(kind: Kind, count: u32) -> u32 {
    match kind {
        Kind::Int | Kind::Array | Kind::Var | Kind::DeclTag => 1,
        Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::FuncProto | Kind::Datasec => count,
        Kind::Void
        | Kind::Ptr
        | Kind::Fwd
        | Kind::Typedef
        | Kind::Volatile
        | Kind::Const
        | Kind::Restrict
        | Kind::Func
        | Kind::Float
        | Kind::TypeTag => 0,
    }
}

/// The numbers of the kernel's `BTF_KIND_*`.
fn kind(number: u32) -> Result<Kind> {
    use Kind::{
        Array, Const, Datasec, DeclTag, Enum, Enum64, Float, Func, FuncProto, Fwd, Int, Ptr, Restrict,
        Struct, TypeTag, Typedef, Union, Var, Void, Volatile,
    };
    let kinds = [
        Void, Int, Ptr, Array, Struct, Union, Enum, Fwd, Typedef, Volatile, Const, Restrict, Func, FuncProto,
        Var, Datasec, Float, DeclTag, TypeTag, Enum64,
    ];
    kinds.get(number as usize).copied().with_context(|| format!("BTF kind {number} is unknown"))
}

fn string(strings: &[u8], at: u32) -> Result<String> {
    let tail = strings.get(at as usize..).context("BTF names a string past its end")?;
    let end = tail.iter().position(|byte| *byte == 0).context("a BTF string has no end")?;
    Ok(String::from_utf8_lossy(&tail[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.maps` with one map whose definition is a struct of one pointer to an array: how libbpf writes max_entries.
    fn sample(entries: u32) -> Vec<u8> {
        let strings = b"\0.maps\0PODS\0def\0max_entries\0u32\0";
        let info = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![28, info(1, 0), 4, 32],           // 1: u32
            vec![0, info(3, 0), 0, 1, 1, entries], // 2: [u32; entries]
            vec![0, info(2, 0), 2],                // 3: pointer to it
            vec![12, info(4, 1), 8, 16, 3, 0],     // 4: struct def { max_entries }
            vec![7, info(14, 0), 4, 1],            // 5: variable PODS
            vec![1, info(15, 1), 8, 5, 0, 8],      // 6: .maps
        ]
        .concat();
        let len = u32::try_from(types.len() * 4).expect("small");
        let header = [0x0001_eb9f, 24, 0, len, len, u32::try_from(strings.len()).expect("small")];
        let words = header.into_iter().chain(types).flat_map(u32::to_le_bytes);
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn a_map_is_described_by_name() {
        let maps = definitions(&sample(64)).expect("valid BTF");
        let [(name, definition)] = &maps[..] else { panic!("one map, got {maps:?}") };
        assert_eq!(name, "PODS");
        assert!(definition.contains("max_entries@0: Ptr  -> [Int u32 (4 bytes); 64]"), "{definition}");
    }

    #[test]
    fn another_size_is_another_definition() {
        assert_ne!(definitions(&sample(64)).expect("valid"), definitions(&sample(65)).expect("valid"));
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let whole = sample(64);
        for len in 0..whole.len() {
            assert!(definitions(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
        }
    }
}
