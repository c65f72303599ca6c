//! The repository names no machine: no absolute path of a particular disk, no package registry's host.
//!
//! Both come from pasting and work only on the machine of origin.

use std::path::{Path, PathBuf};

/// Folders specific to one machine: a path that starts with one of them is meaningless elsewhere.
const FOLDERS: [&str; 5] = ["home", "root", "work", "farm", "Users"];

/// Registries by name and domain, split so that this file itself does not contain them. The Hub is not among
/// them, because models come from there by design.
const REGISTRIES: [(&str, &str); 5] = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("crates", "io"),
    ("npmjs", "org"),
    ("debian", "org"),
];

/// Why a line is not portable; `None` if it is.
fn complaint(line: &str) -> Option<String> {
    for (name, domain) in REGISTRIES {
        let host = format!("{name}.{domain}");
        if line.contains(&host) {
            return Some(format!("names the registry host {host}"));
        }
    }
    for folder in FOLDERS {
        let path = format!("/{folder}/");
        for (at, _) in line.match_indices(&path) {
            // `$X/home/`, `../work/`, `example.org/home/` and `<root>/` are not absolute paths.
            let before = line[..at].chars().next_back();
            let inside = before.is_some_and(|c| c.is_alphanumeric() || "_.-/}>)$*~".contains(c));
            let after = line[at + path.len()..].chars().next();
            if !inside && after.is_some_and(|c| c.is_alphanumeric() || c == '.') {
                return Some(format!("has an absolute path in {path}"));
            }
        }
    }
    None
}

/// Hand-written text files under a folder.
fn text_files(folder: &Path, out: &mut Vec<PathBuf>) {
    // Built, fetched and generated files, and third-party data.
    const SKIPPED: [&str; 6] = [
        "target",
        "runs",
        ".git",
        ".carry",
        "tiny-stories-4m",
        "__pycache__",
    ];
    // Cargo itself writes its registry's address to Cargo.lock, so `.lock` is not in this list.
    const ENDINGS: [&str; 14] = [
        "rs", "toml", "md", "py", "sh", "txt", "cu", "cuh", "h", "cpp", "json", "snap", "yml", "html",
    ];
    for entry in std::fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_symlink() || SKIPPED.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            text_files(&path, out);
        } else if path.ends_with(".ci/run")
            || path
                .extension()
                .is_some_and(|e| ENDINGS.iter().any(|&known| e == known))
        {
            out.push(path);
        }
    }
}

#[test]
fn no_file_names_a_machine_or_a_registry() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    text_files(&root, &mut files);
    assert!(
        files
            .iter()
            .any(|file| file.ends_with("harness/check/src/lib.rs")),
        "no sources found: the test looks in the wrong place"
    );
    let mut complaints = Vec::new();
    for file in files {
        // Files that are not UTF-8 are data.
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if let Some(reason) = complaint(line) {
                complaints.push(format!("{}:{}: {reason}", file.display(), number + 1));
            }
        }
    }
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
fn the_scanner_tells_paths_apart() {
    let slash = '/';
    for bad in [
        format!("let dir = \"{slash}home/ada/models\";"),
        format!("cd {slash}work/main"),
        format!("{slash}root/.cargo/bin"),
        format!("see https://{}.{}{slash}project", "pypi", "org"),
        format!("registry = \"https://index.{}.{}\"", "crates", "io"),
    ] {
        assert!(complaint(&bad).is_some(), "{bad}");
    }
    for good in [
        "../shared/work/notes",
        "$OUT/tmp/x",
        "https://example.org/home/x",
        "a share of time / work / memory",
        "<root>/target/debug",
        "/usr/local/cuda/include",
        "std::env::temp_dir()",
    ] {
        assert_eq!(complaint(good), None, "{good}");
    }
}
