//! Programs and test suites that connect over TCP, each run plain and through the mesh, the outcomes compared. What
//! differs is in `differences`, and in docs/compatibility.md with the same words.
//!
//! `kernel` is also part of the set that `cargo xtask vm-test` runs on other kernels.

mod bulk;
mod cpython;
mod databases;
mod differences;
mod files;
mod http;
mod kernel;
mod messages;
mod names;
mod same_host;

use mesh_tests::transparency::Difference;

#[test]
fn the_documentation_lists_the_same_differences() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
    let text = std::fs::read_to_string(path).expect("docs/compatibility.md");
    let (_, section) =
        text.split_once("\n### Differences between a plain and a captured run\n").unwrap_or_default();
    let section = section.split_once("\n#").map_or(section, |(section, _)| section);
    let documented: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let declared: Vec<_> = differences::all().map(Difference::row).collect();
    assert!(
        documented == declared,
        "docs/compatibility.md should list exactly these:\n\n{}\n",
        declared.join("\n")
    );
}
