//! Imports inside a crate: no cycle among files, and no import against the order in docs/architecture.md.
//!
//! An import of a name is followed through re-exports to the file that defines the name. A module's list of
//! `pub use` therefore creates no edge. Unit tests (`#[cfg(test)]`) are ignored, because a test may import
//! from above.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// The checked crates, by folder; the first module of each path is the crate's own.
const CRATES: [(&str, &str); 9] = [
    ("aqlm-vocabulary", "reference/vocabulary/src/lib.rs"),
    ("aqlm-kernels", "kernels/src/lib.rs"),
    ("aqlm-reference", "reference/src/lib.rs"),
    ("aqlm-optimized", "optimized/src/lib.rs"),
    ("aqlm-formats", "harness/formats/src/lib.rs"),
    ("aqlm-engine", "harness/engine/src/lib.rs"),
    ("aqlm-check", "harness/check/src/lib.rs"),
    ("aqlm", "harness/aqlm/src/main.rs"),
    ("aqlm-mutants", "harness/tools/mutants/src/main.rs"),
];

/// A module's path from its crate's root; empty for the root itself.
type ModulePath = Vec<String>;

/// Contents of one file: the names that it defines, its re-exports, and the paths that it uses.
#[derive(Default)]
struct Module {
    children: BTreeSet<String>,
    defined: BTreeSet<String>,
    /// name here -> path as written; `*` re-exports have the name `*`
    reexports: Vec<(String, ModulePath)>,
    uses: Vec<ModulePath>,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .meta
                .require_list()
                .is_ok_and(|list| list.tokens.to_string().contains("test"))
    })
}

/// Every path of a use tree, as (name here, path).
fn leaves(tree: &syn::UseTree, before: &ModulePath, out: &mut Vec<(String, ModulePath)>) {
    match tree {
        syn::UseTree::Path(path) => {
            let mut longer = before.clone();
            longer.push(path.ident.to_string());
            leaves(&path.tree, &longer, out);
        }
        syn::UseTree::Name(name) if name.ident == "self" => {
            out.push((
                before.last().cloned().unwrap_or_else(|| "self".into()),
                before.clone(),
            ));
        }
        syn::UseTree::Name(name) => {
            let mut whole = before.clone();
            whole.push(name.ident.to_string());
            out.push((name.ident.to_string(), whole));
        }
        syn::UseTree::Rename(rename) => {
            let mut whole = before.clone();
            whole.push(rename.ident.to_string());
            out.push((rename.rename.to_string(), whole));
        }
        syn::UseTree::Glob(_) => {
            let mut whole = before.clone();
            whole.push("*".into());
            out.push(("*".into(), whole));
        }
        syn::UseTree::Group(group) => {
            for item in &group.items {
                leaves(item, before, out);
            }
        }
    }
}

/// Collects definitions, re-exports and paths of one file, without its unit tests.
struct Reader<'m> {
    module: &'m mut Module,
    depth: usize,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, name) = match item {
            syn::Item::Const(item) => (&item.attrs, Some(item.ident.to_string())),
            syn::Item::Enum(item) => (&item.attrs, Some(item.ident.to_string())),
            syn::Item::Fn(item) => (&item.attrs, Some(item.sig.ident.to_string())),
            syn::Item::Macro(item) => (&item.attrs, item.ident.as_ref().map(ToString::to_string)),
            syn::Item::Static(item) => (&item.attrs, Some(item.ident.to_string())),
            syn::Item::Struct(item) => (&item.attrs, Some(item.ident.to_string())),
            syn::Item::Trait(item) => (&item.attrs, Some(item.ident.to_string())),
            syn::Item::Type(item) => (&item.attrs, Some(item.ident.to_string())),
            syn::Item::Mod(item) => (&item.attrs, None),
            syn::Item::Use(item) => (&item.attrs, None),
            syn::Item::Impl(item) => (&item.attrs, None),
            _ => return syn::visit::visit_item(self, item),
        };
        if is_test(attributes) {
            return;
        }
        if self.depth == 0 {
            self.module.defined.extend(name);
        }
        match item {
            syn::Item::Mod(item) if item.content.is_none() => {
                self.module.children.insert(item.ident.to_string());
            }
            syn::Item::Use(item) => {
                let mut found = Vec::new();
                leaves(&item.tree, &Vec::new(), &mut found);
                if matches!(item.vis, syn::Visibility::Inherited) {
                    self.module.uses.extend(found.into_iter().map(|(_, path)| path));
                } else {
                    self.module.reexports.extend(found);
                }
            }
            _ => {
                self.depth += 1;
                syn::visit::visit_item(self, item);
                self.depth -= 1;
            }
        }
    }

    /// `pub(in super::super)` names a module but uses nothing from it.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: ModulePath = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if segments.len() > 1 {
            self.module.uses.push(segments);
        }
        syn::visit::visit_path(self, path);
    }
}

/// The files of one crate, by module path.
struct Crate {
    files: BTreeMap<ModulePath, PathBuf>,
    modules: BTreeMap<ModulePath, Module>,
}

impl Crate {
    fn read(root_file: &Path) -> Self {
        let mut this = Self {
            files: BTreeMap::new(),
            modules: BTreeMap::new(),
        };
        this.add(
            Vec::new(),
            root_file,
            root_file.parent().expect("a folder of sources"),
        );
        this
    }

    fn add(&mut self, path: ModulePath, file: &Path, folder: &Path) {
        let source =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let syntax = syn::parse_file(&source).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut module = Module::default();
        Reader {
            module: &mut module,
            depth: 0,
        }
        .visit_file(&syntax);
        for child in module.children.clone() {
            let beside = folder.join(format!("{child}.rs"));
            let inside = folder.join(&child).join("mod.rs");
            let mut longer = path.clone();
            longer.push(child.clone());
            let file = if beside.is_file() { beside } else { inside };
            self.add(longer, &file, &folder.join(&child));
        }
        self.files.insert(path.clone(), file.to_path_buf());
        self.modules.insert(path, module);
    }

    /// The module whose file defines `path`, as written in `module`; `None` for paths outside this crate.
    fn definer(&self, module: &ModulePath, path: &[String], fuel: usize) -> Option<ModulePath> {
        let fuel = fuel.checked_sub(1)?;
        let (mut at, rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.clone(), &path[1..]),
            "super" => (module[..module.len().checked_sub(1)?].to_vec(), &path[1..]),
            first if self.modules.get(module)?.children.contains(first) => (module.clone(), path),
            _ => return None,
        };
        for (index, segment) in rest.iter().enumerate() {
            let here = self.modules.get(&at)?;
            if segment == "super" {
                at.pop();
            } else if here.children.contains(segment) {
                at.push(segment.clone());
            } else if here.defined.contains(segment) || segment == "*" {
                return Some(at);
            } else {
                // A name that this module re-exports: follow it.
                let named = here.reexports.iter().find(|(name, _)| name == segment);
                if let Some((_, target)) = named {
                    let mut whole = target.clone();
                    whole.extend_from_slice(&rest[index + 1..]);
                    return self.definer(&at, &whole, fuel).or(Some(at));
                }
                let globs = here.reexports.iter().filter(|(name, _)| name == "*");
                for (_, target) in globs {
                    let mut whole = target[..target.len() - 1].to_vec();
                    whole.push(segment.clone());
                    let found = self.definer(&at, &whole, fuel);
                    if found.is_some_and(|found| self.modules[&found].defined.contains(segment)) {
                        return self.definer(&at, &whole, fuel);
                    }
                }
                return Some(at);
            }
        }
        Some(at)
    }

    /// The imports among files, as (importing module, imported module).
    fn imports(&self) -> BTreeSet<(ModulePath, ModulePath)> {
        let mut found = BTreeSet::new();
        for (module, content) in &self.modules {
            for path in &content.uses {
                let target = self.definer(module, path, 16);
                found.extend(
                    target
                        .filter(|target| target != module)
                        .map(|target| (module.clone(), target)),
                );
            }
        }
        found
    }
}

/// The groups of modules that import one another, directly or through others.
fn circles(imports: &BTreeSet<(ModulePath, ModulePath)>) -> Vec<BTreeSet<ModulePath>> {
    let mut next: BTreeMap<&ModulePath, Vec<&ModulePath>> = BTreeMap::new();
    for (from, to) in imports {
        next.entry(from).or_default().push(to);
    }
    let reach = |start: &ModulePath| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&ModulePath> = next.get(start).cloned().unwrap_or_default();
        while let Some(module) = open.pop() {
            if seen.insert(module.clone()) {
                open.extend(next.get(module).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<&ModulePath, BTreeSet<ModulePath>> =
        next.keys().map(|&module| (module, reach(module))).collect();
    let mut found: Vec<BTreeSet<ModulePath>> = Vec::new();
    for (&module, from_here) in &reached {
        let circle: BTreeSet<ModulePath> = from_here
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(module)))
            .cloned()
            .collect();
        if !circle.is_empty() && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The orders stated in docs/architecture.md: for each crate, its modules from the bottom to the top.
fn stated_orders() -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let block = text
        .split("```order\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a block of orders in docs/architecture.md");
    block
        .lines()
        .map(|line| {
            let (name, modules) = line.split_once(':').expect("a line `crate: modules`");
            (
                name.trim().to_owned(),
                modules.split_whitespace().map(str::to_owned).collect(),
            )
        })
        .collect()
}

/// Imports from a module of one above it in its crate's order, as `from -> to`. A module's position is that
/// of the longest of its path prefixes named in the order.
fn upward(imports: &BTreeSet<(ModulePath, ModulePath)>, order: &[String]) -> Vec<String> {
    let place = |module: &ModulePath| {
        (1..=module.len())
            .rev()
            .find_map(|length| order.iter().position(|name| *name == module[..length].join("::")))
    };
    imports
        .iter()
        .filter_map(|(from, to)| {
            let (low, high) = (place(from)?, place(to)?);
            (high > low).then(|| format!("{} -> {}", from.join("::"), to.join("::")))
        })
        .collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut found = Vec::new();
    for (name, file) in CRATES {
        let sources = Crate::read(&root().join(file));
        assert!(!sources.files.is_empty(), "{name}: no sources");
        for circle in circles(&sources.imports()) {
            let files: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            found.push(format!("{name}: {}", files.join(", ")));
        }
    }
    assert!(found.is_empty(), "circles of imports:\n{}", found.join("\n"));
}

#[test]
fn no_import_runs_against_the_order_of_the_architecture() {
    let orders = stated_orders();
    let mut found = Vec::new();
    for (name, file) in CRATES {
        let sources = Crate::read(&root().join(file));
        let order = orders
            .get(name)
            .unwrap_or_else(|| panic!("{name} has no order in docs/architecture.md"));
        let stated: BTreeSet<&str> = order
            .iter()
            .map(|path| path.split("::").next().unwrap_or(path))
            .collect();
        let there: BTreeSet<&str> = sources.modules[&Vec::new()]
            .children
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(
            stated, there,
            "{name}: modules in docs/architecture.md and in the crate"
        );
        found.extend(
            upward(&sources.imports(), order)
                .into_iter()
                .map(|import| format!("{name}: {import}")),
        );
    }
    assert!(
        found.is_empty(),
        "imports against the order:\n{}",
        found.join("\n")
    );
}

#[test]
fn circles_and_upward_imports_are_found() {
    let module = |name: &str| vec![name.to_owned()];
    let imports = BTreeSet::from([
        (module("a"), module("b")),
        (module("b"), module("c")),
        (module("c"), module("a")),
        (module("d"), module("a")),
    ]);
    let circle = BTreeSet::from(["a", "b", "c"].map(module));
    assert_eq!(circles(&imports), [circle]);
    let order = ["a", "b", "c", "d"].map(str::to_owned);
    assert_eq!(upward(&imports, &order), ["a -> b", "b -> c"]);
    let inner = vec!["a".to_owned(), "one".to_owned()];
    let order = ["a", "b", "a::one"].map(str::to_owned);
    assert_eq!(
        upward(&BTreeSet::from([(inner.clone(), module("b"))]), &order),
        Vec::<String>::new()
    );
    assert_eq!(
        upward(&BTreeSet::from([(module("b"), inner)]), &order),
        ["b -> a::one"]
    );
}

#[test]
fn imports_are_followed_to_the_file_that_defines_a_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write(
        "lib.rs",
        "mod one; mod two; mod three; pub use two::{Two as Other}; pub use three::*;",
    );
    write("one.rs", "use crate::{Other, Three}; fn f() { super::two::g(); }");
    write(
        "two.rs",
        "pub struct Two; pub fn g() {}\n#[cfg(test)] mod tests { use crate::one::f; }",
    );
    write("three.rs", "pub struct Three;");
    let module = |name: &str| vec![name.to_owned()];
    assert_eq!(
        Crate::read(&folder.path().join("lib.rs")).imports(),
        BTreeSet::from([(module("one"), module("three")), (module("one"), module("two"))])
    );
}
