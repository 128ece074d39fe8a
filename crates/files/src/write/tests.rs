//! What is written is read again, by this reader and by the format's own; a dropped writer leaves nothing.

use tempfile::TempDir;

use super::*;
use crate::place::Place;
use crate::safetensors::SafeTensors;

fn specs() -> Vec<TensorSpec> {
    let spec = |name: &str, element, shape: &[usize]| TensorSpec { name: name.into(), element, shape: shape.to_vec() };
    vec![
        spec("b", Element::U8, &[3]),
        spec("w", Element::U32, &[2, 5]),
        spec("h", Element::BF16, &[7]),
        spec("empty", Element::F32, &[0, 4]),
        spec("f", Element::F32, &[3, 3]),
    ]
}

fn data(spec: &TensorSpec) -> Vec<u8> {
    let seed = spec.name.bytes().map(u64::from).sum::<u64>();
    (0..spec.bytes().unwrap()).map(|i| (i * 31 + seed) as u8).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes all tensors by turns, a few bytes at a time.
fn write(folder: &Path, most_bytes: u64) {
    let specs = specs();
    let mut writer = SafeTensorsWriter::create(folder, &specs, most_bytes, &[("format", "mlx")]).unwrap();
    let data: Vec<_> = specs.iter().map(data).collect();
    for at in (0..40).step_by(5) {
        for (spec, data) in specs.iter().zip(&data).rev() {
            let end = data.len().min(at + 5);
            writer.append(&spec.name, data.get(at..end).unwrap_or_default()).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn shards_and_single_files_read_back() {
    for (most_bytes, files) in [(u64::MAX, 1), (60, 2), (1, 4)] {
        let folder = TempDir::new().unwrap();
        write(folder.path(), most_bytes);
        let all = SafeTensors::open(&Place::Folder(folder.path().to_owned())).unwrap();
        assert_eq!(all.files.len(), files, "{most_bytes}");
        assert_eq!(all.metadata["format"], "mlx");
        for spec in specs() {
            assert_eq!(all.bytes(&spec.name), Some(data(&spec).as_slice()), "{}", spec.name);
            let (file, stored) = &all.tensors[&spec.name];
            assert_eq!((stored.element, &stored.shape), (spec.element, &spec.shape));
            assert_eq!(stored.range.start % spec.element.size(), 0, "{} is aligned", spec.name);
            assert!(*file < files);
        }
        for file in &all.files {
            let theirs = ::safetensors::SafeTensors::deserialize(file.bytes()).unwrap();
            for (name, view) in theirs.tensors() {
                assert_eq!(Some(view.data()), all.bytes(&name));
            }
        }
        assert_eq!(names(folder.path()).iter().any(|n| n == INDEX), files > 1);
    }
}

#[test]
fn one_file_of_any_name_stands_alone() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(INDEX), "theirs").unwrap();
    let path = folder.path().join("own.safetensors");
    let mut writer = SafeTensorsWriter::in_file(PendingFile::create(&path).unwrap(), &specs(), &[]).unwrap();
    specs().iter().for_each(|spec| writer.append(&spec.name, &data(spec)).unwrap());
    writer.finish().unwrap();
    assert_eq!(fs::read(folder.path().join(INDEX)).unwrap(), b"theirs");
    let bytes = fs::read(&path).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    specs().iter().for_each(|spec| assert_eq!(theirs.tensor(&spec.name).unwrap().data(), data(spec)));
}

#[test]
fn large_tensors_are_gathered_and_complete() {
    let folder = TempDir::new().unwrap();
    let spec = TensorSpec { name: "big".into(), element: Element::U8, shape: vec![3 * PENDING_BYTES + 5] };
    let data = data(&spec);
    let mut writer = SafeTensorsWriter::create(folder.path(), &[spec], u64::MAX, &[]).unwrap();
    data.chunks(700_001).for_each(|part| writer.append("big", part).unwrap());
    writer.finish().unwrap();
    let all = SafeTensors::open(&Place::Folder(folder.path().to_owned())).unwrap();
    assert!(all.bytes("big") == Some(&data));
}

#[test]
fn a_second_write_replaces_the_first() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), 60);
    for name in names(folder.path()).iter().filter(|name| name.starts_with("model-")) {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    write(folder.path(), u64::MAX);
    assert!(SafeTensors::open(&Place::Folder(folder.path().to_owned())).is_ok());
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(SINGLE), "old").unwrap();
    let mut writer = SafeTensorsWriter::create(folder.path(), &specs(), u64::MAX, &[]).unwrap();
    writer.append("b", &[1, 2]).unwrap();
    drop(writer);
    assert_eq!(names(folder.path()), [SINGLE]);
    assert_eq!(fs::read(folder.path().join(SINGLE)).unwrap(), b"old");
}

#[test]
fn incomplete_and_odd_writes_are_refused() {
    let folder = TempDir::new().unwrap();
    let mut writer = SafeTensorsWriter::create(folder.path(), &specs(), u64::MAX, &[]).unwrap();
    assert!(writer.append("nobody", &[]).unwrap_err().to_string().contains("nobody"));
    assert!(writer.append("b", &[0; 4]).unwrap_err().to_string().contains("at most 3"));
    writer.append("b", &[0; 3]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("found 0 bytes") && error.contains("'f'"), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
    let twice = [specs(), specs()].concat();
    assert!(SafeTensorsWriter::create(folder.path(), &twice, u64::MAX, &[]).unwrap_err().to_string().contains("twice"));
    let huge = [TensorSpec { name: "t".into(), element: Element::F32, shape: vec![usize::MAX, 2] }];
    assert!(SafeTensorsWriter::create(folder.path(), &huge, u64::MAX, &[]).unwrap_err().to_string().contains("'t'"));
    assert_eq!(names(folder.path()), Vec::<String>::new());
    assert!(write_file(Path::new("/"), b"x").is_err());
}

#[test]
fn json_is_indented_and_ends_its_line() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.json");
    write_json(&path, &json!({"a": [1]})).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}\n");
    assert_eq!(names(folder.path()), ["a.json"]);
}

#[test]
fn a_folder_is_there_whole_or_not_at_all() {
    let home = TempDir::new().unwrap();
    let (new, there) = (home.path().join("a/new"), home.path().join("there"));
    fs::create_dir(&there).unwrap();
    for target in [&new, &there] {
        let pending = PendingFolder::create(target).unwrap();
        fs::write(pending.path().join("first"), "1").unwrap();
        assert!(PendingFolder::create(target).unwrap_err().to_string().contains("another run"));
        drop(pending);
        assert_eq!((names(home.path()), names(&there)), (vec!["there".to_owned()], vec![]));
    }
    for target in [&new, &there] {
        let pending = PendingFolder::create(target).unwrap();
        for name in ["a", "last", "z"] {
            fs::write(pending.path().join(name), name).unwrap();
        }
        assert!(!target.join("a").exists());
        pending.finish("last").unwrap();
        assert_eq!(names(target), ["a", "last", "z"]);
    }
    assert_eq!(
        (names(home.path()), names(&home.path().join("a"))),
        (vec!["a".to_owned(), "there".into()], vec!["new".into()])
    );
}

/// Somebody else may write to a folder of the user's meanwhile.
#[test]
fn a_folder_takes_nobodys_place() {
    let home = TempDir::new().unwrap();
    let (new, there) = (home.path().join("new"), home.path().join("there"));
    fs::create_dir(&there).unwrap();
    for target in [&new, &there] {
        let pending = PendingFolder::create(target).unwrap();
        for name in ["a", "b", "last"] {
            fs::write(pending.path().join(name), "ours").unwrap();
        }
        fs::create_dir_all(target).unwrap();
        fs::write(target.join("b"), "theirs").unwrap();
        pending.finish("last").unwrap_err();
        assert_eq!(names(target), ["b"]);
        assert_eq!(fs::read(target.join("b")).unwrap(), b"theirs");
    }
    assert_eq!(names(home.path()), ["new", "there"]);
}
