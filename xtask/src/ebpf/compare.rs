//! What makes two BPF objects the same program: code, data, symbols, relocations and map definitions.
//!
//! Line numbers and source text (BTF.ext, BTF's strings) are left out: a new comment must not need a new object.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionFlags, elf,
};

use super::maps;

type Elf<'a> = ElfFile64<'a, LittleEndian>;

/// One line per thing that differs, each naming its section.
pub(crate) fn differences(committed: &[u8], built: &[u8]) -> Result<Vec<String>> {
    let old = facets(committed).context("the committed object")?;
    let new = facets(built).context("the built object")?;
    let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let differs = |name: &str| old.get(name) != new.get(name);
    // Once the bytes of a section differ, that its relocations and symbols moved too says nothing more.
    names.retain(|name| !name.find("section ").is_some_and(|at| at > 0 && differs(&name[at..])));
    Ok(names.into_iter().filter_map(|name| difference(name, old.get(name), new.get(name))).collect())
}

fn difference(name: &str, old: Option<&Vec<u8>>, new: Option<&Vec<u8>>) -> Option<String> {
    match (old, new) {
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) => {
            let at = old.iter().zip(new).take_while(|(a, b)| a == b).count();
            Some(format!(
                "{name} differs from byte {at} on (committed {}, built {} bytes)",
                old.len(),
                new.len()
            ))
        }
        (Some(_), None) => Some(format!("{name} is in the committed object only")),
        (None, Some(_)) => Some(format!("{name} is in the built object only")),
        (None, None) => None,
    }
}

/// Everything that counts, by name, in a form in which equal means the same program.
fn facets(data: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let elf = Elf::parse(data).context("is not a 64-bit little-endian ELF file")?;
    let mut facets = BTreeMap::new();
    for section in elf.sections().filter(is_loaded) {
        let name = section.name()?;
        facets.insert(format!("section {name}"), section.data()?.to_vec());
        facets.insert(format!("relocations of section {name}"), relocations(&elf, &section)?.into_bytes());
        facets.insert(format!("symbols of section {name}"), symbols(&elf, section.index())?.into_bytes());
    }
    if let Some(btf) = elf.section_by_name(".BTF") {
        for (map, definition) in maps::definitions(btf.data()?)? {
            facets.insert(format!("section .maps: the definition of map {map}"), definition.into_bytes());
        }
    }
    Ok(facets)
}

fn is_loaded<'a>(section: &impl object::ObjectSection<'a>) -> bool {
    matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(elf::SHF_ALLOC))
}

/// Targets by name and place, since the numbering of symbols may change without a change of meaning.
fn relocations<'a>(elf: &Elf<'a>, section: &impl object::ObjectSection<'a>) -> Result<String> {
    let mut lines = Vec::new();
    for (offset, relocation) in section.relocations() {
        let target = if let RelocationTarget::Symbol(index) = relocation.target() {
            let symbol = elf.symbol_by_index(index)?;
            let home = symbol.section_index().and_then(|index| elf.section_by_index(index).ok());
            let home = home.as_ref().map_or(Ok("-"), |home| home.name())?;
            format!("{home} {}+{}", symbol.name()?, symbol.address())
        } else {
            format!("{:?}", relocation.target())
        };
        lines.push(format!("{offset:#x} {:?} {target} {}\n", relocation.flags(), relocation.addend()));
    }
    Ok(lines.concat())
}

fn symbols(elf: &Elf<'_>, section: object::SectionIndex) -> Result<String> {
    let mut lines = Vec::new();
    for symbol in elf.symbols().filter(|symbol| symbol.section_index() == Some(section)) {
        lines.push(format!(
            "{:#x} {} {:?} {}\n",
            symbol.address(),
            symbol.size(),
            symbol.kind(),
            symbol.name()?
        ));
    }
    lines.sort();
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_section_and_the_place() {
        let line = difference("section xdp", Some(&vec![1, 2, 3]), Some(&vec![1, 9, 3, 4]));
        assert_eq!(line.as_deref(), Some("section xdp differs from byte 1 on (committed 3, built 4 bytes)"));
        assert_eq!(difference("section xdp", Some(&vec![1]), Some(&vec![1])), None);
        assert!(
            difference("section xdp", None, Some(&vec![1])).is_some_and(|l| l.contains("built object only"))
        );
    }
}
