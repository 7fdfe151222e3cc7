//! Programs of `tests/programs` that are compiled, each when a test first needs it.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{process::run, space::tool};

/// What is made of a source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Make {
    /// An ordinary program, of C.
    C,
    /// A static one with musl's library.
    Musl,
    /// A 32-bit one.
    ThirtyTwoBit,
    /// A static one of Go, without any C.
    Go,
    /// A folder of Java's classes.
    Java,
}

/// Returns the path of `tests/programs/SOURCE`, for what interprets it.
pub fn source(source: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(source)
}

/// Returns the program made of `tests/programs/NAME`; it is kept below `target` until the source changes.
///
/// # Panics
/// When it can't be compiled.
#[track_caller]
pub fn compiled(name: &str, make: Make) -> PathBuf {
    let source = source(name);
    let text = fs::read(&source).unwrap_or_else(|e| panic!("read {}: {e}", source.display()));
    let mut hasher = DefaultHasher::new();
    (&text, make).hash(&mut hasher);
    let folder = tool("probe").parent().expect("it is in a folder").join("programs");
    fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("mkdir {}: {e}", folder.display()));
    let stem = source.file_stem().expect("it has a name").to_string_lossy().into_owned();
    let done = folder.join(format!("{stem}-{make:?}-{:016x}", hasher.finish()));
    if !done.exists() {
        // Several tests may be here at once: each makes its own, and the last one's stays.
        let own = tempfile::Builder::new().tempdir_in(&folder).expect("an own folder");
        let made = own.path().join(&stem);
        run(command(make, &source, &made, &folder), None, Duration::from_secs(600)).ok();
        let renamed = fs::rename(&made, &done);
        // Another one's folder is not replaced, and as good.
        assert!(done.exists(), "rename to {}: {renamed:?}", done.display());
    }
    done
}

fn command(make: Make, source: &Path, made: &Path, folder: &Path) -> Command {
    let mut command = Command::new(match make {
        Make::C | Make::ThirtyTwoBit => "gcc",
        Make::Musl => "musl-gcc",
        Make::Go => "go",
        Make::Java => "javac",
    });
    if make == Make::Go {
        command.args(["build", "-o"]).arg(made).arg(source);
        return with_own_cache(command, folder);
    }
    if make == Make::Java {
        command.arg("-d").arg(made).arg(source);
        return command;
    }
    command.args(["-O1", "-pthread", "-o"]).arg(made).arg(source);
    match make {
        // musl-gcc looks for none but musl's headers, and those of the kernel are among the system's.
        Make::Musl => {
            let machine = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
            command.args(["-static", "-idirafter", "/usr/include", "-idirafter", &machine])
        }
        Make::ThirtyTwoBit => command.arg("-m32"),
        Make::C | Make::Go | Make::Java => &mut command,
    };
    command
}

fn with_own_cache(mut go: Command, folder: &Path) -> Command {
    go.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOCACHE", folder.join("go"));
    go
}
