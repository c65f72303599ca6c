//! Models in several GGUF files, named `NAME-00001-of-00003.gguf` and so on. Each part says in `split.no`
//! (from 0) and `split.count` which part it is; the first part has the metadata of all.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::container::Container;
use super::fields::Fields;
use crate::{Error, Result};

/// Which part of a model a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// from 0
    number: usize,
    /// at least 2
    count: usize,
}

/// The largest number of parts that a name's five digits can count.
const MOST_PARTS: usize = 99_999;

/// Missing parts that an error names before it counts the rest.
const NAMED_PARTS: usize = 3;

/// Opens a file. When the file is one part of several, opens them all, whichever part was given.
///
/// # Errors
/// Those of [`Container::open`]; `Kind` for missing parts and for a name that contradicts the metadata;
/// `Field` when the parts disagree; `Header` for a tensor in two parts.
pub(super) fn open(path: &Path) -> Result<Container> {
    let given = Container::open(path)?;
    let Some(part) = part_of(&given)? else {
        return Ok(given);
    };
    let paths = part.all_paths(path)?;
    let mut whole = if part.number == 0 {
        given
    } else {
        read_part(&paths, 0, part.count)?
    };
    for number in 1..part.count {
        append(&mut whole, read_part(&paths, number, part.count)?)?;
    }
    let fields = Fields {
        path: whole.path(),
        architecture: "",
        metadata: &whole.metadata,
    };
    let key = "split.tensors.count";
    if let Some(expected) = fields.integer(key)?
        && expected != whole.tensors.len() as i64
    {
        return Err(fields.wrong(key, &format!("the {} tensors of all parts", whole.tensors.len())));
    }
    Ok(whole)
}

/// `None` for a whole model.
fn part_of(file: &Container) -> Result<Option<Part>> {
    let fields = Fields {
        path: file.path(),
        architecture: "",
        metadata: &file.metadata,
    };
    let key = "split.count";
    let count = match fields.integer(key)? {
        None | Some(0 | 1) => return Ok(None),
        Some(count) => usize::try_from(count).ok().filter(|count| *count <= MOST_PARTS),
    };
    let count = count.ok_or_else(|| fields.wrong(key, &format!("a number of parts up to {MOST_PARTS}")))?;
    let number = fields.integer("split.no")?;
    let number = number.and_then(|number| usize::try_from(number).ok());
    match number.filter(|number| *number < count) {
        Some(number) => Ok(Some(Part { number, count })),
        None => Err(fields.wrong("split.no", &format!("a part's number in 0..{count}"))),
    }
}

impl Part {
    /// The end of this part's file name.
    fn suffix(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.number + 1, self.count)
    }

    /// The paths of all parts, in order; `path` is this part's.
    fn all_paths(self, path: &Path) -> Result<Vec<PathBuf>> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let Some(stem) = name.strip_suffix(self.suffix().as_bytes()) else {
            return Err(Error::Kind {
                path: path.into(),
                expected: format!(
                    "a name that ends in {}, as the file is part {} of {}",
                    self.suffix(),
                    self.number + 1,
                    self.count
                ),
                found: "another name".into(),
            });
        };
        let part_path = |number: usize| {
            let mut name = stem.to_vec();
            name.extend(Part { number, ..self }.suffix().as_bytes());
            path.with_file_name(OsString::from_vec(name))
        };
        let paths: Vec<PathBuf> = (0..self.count).map(part_path).collect();
        let missing: Vec<&PathBuf> = paths.iter().filter(|path| !path.exists()).collect();
        if missing.is_empty() {
            return Ok(paths);
        }
        let names = missing.iter().take(NAMED_PARTS).map(|path| {
            let name = path.file_name().unwrap_or_default();
            format!("no {}", Path::new(name).display())
        });
        let mut found = names.collect::<Vec<_>>().join(", ");
        if missing.len() > NAMED_PARTS {
            found = format!("{found}, nor {} others", missing.len() - NAMED_PARTS);
        }
        Err(Error::Kind {
            path: path.into(),
            expected: format!("all {} parts of the model in its folder", self.count),
            found,
        })
    }
}

/// Reads part `number`, whose metadata must say the same.
fn read_part(paths: &[PathBuf], number: usize, count: usize) -> Result<Container> {
    let file = Container::open(&paths[number])?;
    let fields = Fields {
        path: file.path(),
        architecture: "",
        metadata: &file.metadata,
    };
    for (key, expected) in [("split.no", number), ("split.count", count)] {
        if fields.integer(key)? != Some(expected as i64) {
            return Err(fields.wrong(key, &format!("{expected}, as the file's name says")));
        }
    }
    Ok(file)
}

/// Adds a part's tensors.
fn append(whole: &mut Container, part: Container) -> Result<()> {
    let file = whole.files.len();
    for (name, mut place) in part.tensors {
        if whole.tensors.contains_key(&name) {
            return Err(Error::Header {
                path: part.files[0].0.clone(),
                expected: "each tensor in one part".into(),
                found: format!("`{name}`, which an earlier part has too"),
            });
        }
        place.file = file;
        whole.tensors.insert(name, place);
    }
    whole.files.extend(part.files);
    Ok(())
}
