//! Takes the DWARF out of a BPF object; code with its relocations, maps, BTF and BTF.ext stay.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf;

pub(crate) fn strip(data: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(data).context("the linked BPF object is not ELF")?;
    for section in &mut builder.sections {
        section.delete = is_debug(&section.name);
    }
    builder.delete_orphans();
    add_section_names(&mut builder);
    let mut out = Vec::new();
    builder.write(&mut out).context("cannot write the stripped BPF object")?;
    Ok(out)
}

/// LLVM keeps the names of sections in `.strtab`; the writer wants them in a table of their own.
fn add_section_names(builder: &mut Builder<'_>) {
    if builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        return;
    }
    let section = builder.sections.add();
    section.name = b".shstrtab"[..].into();
    section.sh_type = elf::SHT_STRTAB;
    section.sh_addralign = 1;
    section.data = SectionData::SectionString;
}

/// No loader reads the relocations of BTF (libbpf and aya take offsets from the symbols), and they are a quarter
/// of the file.
fn is_debug(section: &[u8]) -> bool {
    let name = section.strip_prefix(b".rel").unwrap_or(section);
    let relocates_btf = name != section && name.starts_with(b".BTF");
    name.starts_with(b".debug_") || name == b".llvm_addrsig" || relocates_btf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_sections_and_their_relocations() {
        assert!(is_debug(b".debug_info"));
        assert!(is_debug(b".rel.debug_info"));
        assert!(is_debug(b".rel.BTF.ext"));
        assert!(!is_debug(b".BTF.ext"));
        assert!(!is_debug(b".relcgroup/connect4"));
        assert!(!is_debug(b".BTF"));
    }
}
