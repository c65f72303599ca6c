//! The kernels that lie in this folder: `OP/kN_name.cu`, each with its description `OP/kN_name.json`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::signature;
use kernel::Kernel;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/kernel.rs"]
pub(crate) mod kernel;

/// The contents of this folder in listing order: by operation, then by number.
pub(crate) struct Found {
    pub(crate) kernels: Vec<Kernel>,
    /// as JSON
    descriptions: Vec<Value>,
    /// (path inside the folder, text)
    sources: Vec<(String, String)>,
}

/// Folder of sources for users to copy, which belong to no ladder.
const EXAMPLES: &str = "examples";

/// Reads the whole folder.
pub(crate) fn find() -> Result<Found, String> {
    let mut found = Found {
        kernels: vec![],
        descriptions: vec![],
        sources: vec![],
    };
    for path in sorted(Path::new("."))? {
        if has_extension(&path, "cuh") {
            println!("cargo::rerun-if-changed={}", path.display());
            found.sources.push((file_name(&path), read(&path)?));
        } else if path.is_dir() && file_name(&path) != EXAMPLES {
            find_op(&path, &mut found)?;
        }
    }
    Ok(found)
}

/// Adds the ladder in `folder`, if there is one.
fn find_op(folder: &Path, found: &mut Found) -> Result<(), String> {
    let op = file_name(folder);
    let files = sorted(folder)?;
    let mut ladder = Vec::new();
    for source in files.iter().filter(|path| has_extension(path, "cu")) {
        let number = number(source)
            .ok_or_else(|| format!("{op}/{}: expected kN_name.cu with a number N", file_name(source)))?;
        ladder.push((number, source));
    }
    for description in files.iter().filter(|path| has_extension(path, "json")) {
        if !description.with_extension("cu").is_file() {
            return Err(format!("{op}/{}: no kernel beside it", file_name(description)));
        }
    }
    if ladder.is_empty() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed={op}");
    ladder.sort();
    if let Some(pair) = ladder.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("{op}: two kernels have the number {}", pair[0].0));
    }
    for (_, source) in ladder {
        let file = format!("{op}/{}", file_name(source));
        let text = read(source)?;
        let described =
            description(&op, &file, source, &text).map_err(|reason| format!("{file}: {reason}"))?;
        let kernel: Kernel = serde_json::from_value(described.clone())
            .map_err(|error| format!("{file}, its description: {error}"))?;
        for (role, operand) in kernel.roles() {
            if !kernel.operands.iter().any(|known| known == operand) {
                let known = kernel.operands.join(", ");
                return Err(format!(
                    "{file}: {role}: expected one of its operands {known}, found {operand}"
                ));
            }
        }
        found.sources.push((file, text));
        found.descriptions.push(described);
        found.kernels.push(kernel);
    }
    Ok(())
}

/// The contents of `kN_name.json`, completed by the source's path and its entry.
fn description(op: &str, file: &str, source: &Path, text: &str) -> Result<Value, String> {
    let path = source.with_extension("json");
    let json = std::fs::read_to_string(&path)
        .map_err(|error| format!("its description {}: {error}", file_name(&path)))?;
    let mut fields: Map<String, Value> =
        serde_json::from_str(&json).map_err(|error| format!("its description: {error}"))?;
    let id = file.trim_end_matches(".cu");
    let operands = signature::pointers(text, op)?;
    for (name, value) in [
        ("id", Value::from(id)),
        ("op", Value::from(op)),
        ("file", Value::from(file)),
        ("operands", Value::from(operands)),
    ] {
        if fields.insert(name.to_owned(), value).is_some() {
            return Err(format!(
                "its description has `{name}`, which follows from the source"
            ));
        }
    }
    Ok(Value::Object(fields))
}

/// Writes the files that the crate includes: sources, descriptions, and the integers that sources define.
pub(crate) fn write(found: &Found) -> Result<(), String> {
    let out = out_folder()?;
    let root = std::env::current_dir().map_err(|error| format!("this folder: {error}"))?;
    let mut sources = String::from("&[\n");
    let mut defines = String::new();
    let mut open = String::new();
    for (file, text) in &found.sources {
        let path = root.join(file);
        let path = path
            .to_str()
            .ok_or_else(|| format!("{file}: expected a path in UTF-8"))?;
        let _ = writeln!(sources, "    ({file:?}, include_str!({path:?})),");
        // Integers of a header go beside the operations' modules, those of a kernel inside its operation's
        // module.
        let (op, name) = match file.trim_end_matches(".cu").split_once('/') {
            Some(parts) => parts,
            None => ("", file.trim_end_matches(".cuh")),
        };
        if open != op {
            if !open.is_empty() {
                defines.push_str("}\n");
            }
            if !op.is_empty() {
                let _ = writeln!(defines, "/// `{op}`\npub mod {op} {{");
            }
            op.clone_into(&mut open);
        }
        let _ = writeln!(defines, "    /// `{file}`\n    pub mod {name} {{");
        for (name, value) in signature::integers(text) {
            let _ = writeln!(
                defines,
                "        /// `#define {name}`\n        pub const {name}: usize = {value};"
            );
        }
        defines.push_str("    }\n");
    }
    sources.push_str("]\n");
    if !open.is_empty() {
        defines.push_str("}\n");
    }
    let descriptions = Value::Array(found.descriptions.clone()).to_string();
    for (name, text) in [
        ("sources.rs", sources),
        ("defines.rs", defines),
        ("kernels.json", descriptions),
    ] {
        std::fs::write(out.join(name), text).map_err(|error| format!("writing {name}: {error}"))?;
    }
    Ok(())
}

/// The folder for build products.
pub(crate) fn out_folder() -> Result<PathBuf, String> {
    std::env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .ok_or_else(|| "no OUT_DIR".into())
}

/// N of `kN_name.cu`.
fn number(path: &Path) -> Option<u32> {
    let name = file_name(path);
    let (number, _) = name.strip_prefix('k')?.split_once('_')?;
    number.parse().ok()
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    let mut paths = std::fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
