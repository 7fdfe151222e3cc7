//! Files that only the owner may read: the state directory, its lock, keys and tokens. Permissions are right from
//! the first moment a file exists, and checked again when it is read.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    #[error("{op} {}: {source}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    #[error("{} can be read by others (mode {mode:04o}): run `chmod {wanted:04o} {}`", path.display(), path.display())]
    Open { path: PathBuf, mode: u32, wanted: u32 },
    #[error("{} belongs to uid {uid}, not to the user that runs meshnode: run `chown` on it, or start as that user", path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error(
        "another process{} uses {}: stop it, or give this one its own state_dir",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        path.display()
    )]
    InUse { path: PathBuf, pid: Option<u32> },
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { op, path, source }
}

/// Makes `path` (0700) unless it is there; refuses one that others can write to.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(failed("make", path))?;
    let mode = fs::metadata(path).map_err(failed("look at", path))?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(FileError::Open { path: path.to_owned(), mode, wanted: 0o700 });
    }
    Ok(())
}

/// Holds `path` for this process until the returned file is dropped.
pub fn lock(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(failed("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(FileError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => {
            return Err(FileError::Io { op: "lock", path: path.to_owned(), source });
        }
    }
    // The pid is for the message above only; the lock itself is the kernel's.
    file.set_len(0).map_err(failed("write", path))?;
    file.write_all(std::process::id().to_string().as_bytes()).map_err(failed("write", path))?;
    Ok(file)
}

/// Makes an empty file (0600) unless there is one; refuses one that others can read.
pub fn private_file(path: &Path) -> Result<(), FileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    check(&options.open(path).map_err(failed("open", path))?, path)
}

/// Returns the text of a file that only its owner may read; `None` where there is no such file.
pub fn read_private(path: &Path) -> Result<Option<String>, FileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    check(&file, path)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed("read", path))?;
    Ok(Some(text))
}

/// Writes the file whole or not at all, with mode 0600 from the start.
pub fn write_private(path: &Path, text: &str) -> Result<(), FileError> {
    write_atomic(path, text, 0o600)
}

/// Likewise, for what everybody may read.
pub fn write_public(path: &Path, text: &str) -> Result<(), FileError> {
    write_atomic(path, text, 0o644)
}

fn write_atomic(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let unfinished = path.with_extension(format!("new-{}", std::process::id()));
    // One left by a crash may have another mode.
    let _ = fs::remove_file(&unfinished);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&unfinished).map_err(failed("make", &unfinished))?;
    file.write_all(text.as_bytes()).map_err(failed("write", &unfinished))?;
    file.sync_all().map_err(failed("write", &unfinished))?;
    fs::rename(&unfinished, path).map_err(failed("replace", path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

fn check(file: &File, path: &Path) -> Result<(), FileError> {
    let meta = file.metadata().map_err(failed("look at", path))?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Open { path: path.to_owned(), mode, wanted: 0o600 });
    }
    let own = nix::unistd::geteuid().as_raw();
    // Root may read a file of the unprivileged user that it starts as; nobody else's key is taken.
    if meta.uid() != own && own != 0 {
        return Err(FileError::Owner { path: path.to_owned(), uid: meta.uid() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_file_is_0600_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_private(&path, "secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read_private(&path).unwrap().as_deref(), Some("secret"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_private(&path, "secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_private(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0644") && error.contains("chmod 0600"), "{error}");
    }

    #[test]
    fn a_lock_names_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        let error = lock(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(held);
        lock(&path).unwrap();
    }
}
