//! A folder that is there whole or not at all. Until it is complete its files lie in a folder of their own; if it is dropped, that goes,
//! and what was there before is as it was. Refuses to know what the files are.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::sync_folder;
use crate::error::{Error, Result};

/// A folder in the making.
#[derive(Debug)]
pub struct PendingFolder {
    /// Where its files lie until it is complete.
    stage: PathBuf,
    target: PathBuf,
    /// Folders made on the way there, outermost first.
    made: Vec<PathBuf>,
    /// True if the user had made the folder already, which then takes the files; else it takes its name whole.
    there: bool,
    complete: bool,
}

impl PendingFolder {
    /// Starts a folder that does not exist yet, or fills one that is empty. Anything else is refused.
    pub fn create(target: &Path) -> Result<PendingFolder> {
        let expected = "a folder that is empty or does not exist yet";
        let refuse = |found: &str| Err(Error::format(target, "folder to write", found, expected));
        let beside = |name: &str| target.with_file_name(format!(".{name}.partial"));
        let (stage, there) = match fs::read_dir(target) {
            Ok(entries) => {
                let stage = target.join(".partial");
                if entries.filter_map(|e| e.ok()).any(|e| e.path() != stage) {
                    return refuse("a folder with files in it");
                }
                (stage, true)
            }
            Err(e) if e.kind() == ErrorKind::NotFound && !target.is_symlink() => {
                match target.file_name().and_then(|n| n.to_str()) {
                    Some(name) => (beside(name), false),
                    None => return refuse("no folder name"),
                }
            }
            Err(e) if e.kind() == ErrorKind::NotADirectory => return refuse("a file"),
            Err(e) => return Err(Error::io("look into", target)(e)),
        };
        let missing = stage.ancestors().skip(1).take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let mut pending = PendingFolder {
            made: missing.map(Path::to_owned).collect::<Vec<_>>().into_iter().rev().collect(),
            stage: PathBuf::new(),
            target: target.to_owned(),
            there,
            complete: false,
        };
        for folder in &pending.made {
            fs::create_dir(folder).map_err(Error::io("create", folder))?;
        }
        fs::create_dir(&stage).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => {
                let found = "what another run writes there now, or left when it was killed";
                Error::format(&stage, "unfinished folder", found, "none; if no other run is at work, remove it")
            }
            _ => Error::io("create", &stage)(e),
        })?;
        pending.stage = stage;
        Ok(pending)
    }

    /// Where its files are written.
    pub fn path(&self) -> &Path {
        &self.stage
    }

    /// Gives all that was written its place; the file `last`, without which the others say nothing, after the others.
    pub fn finish(mut self, last: &str) -> Result<()> {
        sync_folder(&self.stage.join(last))?;
        if self.there {
            self.move_up(last)?;
            fs::remove_dir(&self.stage).map_err(Error::io("remove", &self.stage))?;
        } else {
            fs::rename(&self.stage, &self.target).map_err(Error::io("rename to", &self.target))?;
        }
        self.complete = true;
        sync_folder(&self.stage)
    }

    /// All files into the folder above. If one has no room there, those before it are taken away again.
    fn move_up(&self, last: &str) -> Result<()> {
        let listed = Error::io("look into", &self.stage);
        let names: std::io::Result<Vec<_>> =
            fs::read_dir(&self.stage).and_then(|all| all.map(|e| Ok(e?.file_name())).collect());
        let mut names = names.map_err(listed)?;
        names.sort_by_key(|name| (name == last, name.clone()));
        let mut moved = Vec::new();
        for name in names {
            let (from, to) = (self.stage.join(&name), self.target.join(&name));
            let taken = || Error::format(&to, "file to write", "a file that was not there before", "an empty folder");
            let renamed =
                if to.exists() { Err(taken()) } else { fs::rename(&from, &to).map_err(Error::io("write", &to)) };
            if let Err(e) = renamed {
                moved.iter().for_each(|path: &PathBuf| drop(fs::remove_file(path)));
                return Err(e);
            }
            moved.push(to);
        }
        Ok(())
    }
}

impl Drop for PendingFolder {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        // Nothing more can be done about what will not go. A folder made on the way goes only if it is empty.
        if !self.stage.as_os_str().is_empty() {
            drop(fs::remove_dir_all(&self.stage));
        }
        self.made.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}
