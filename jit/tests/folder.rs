//! Where it cannot be told whose a file is, no folder of compiled code is opened.
use mynah_jit::tier::Folder;

#[test]
fn a_folder_is_refused_where_it_cannot_be_told_whose_it_is() {
    let path = std::env::temp_dir().join(format!("mynah-folder-{}", std::process::id()));
    let opened = Folder::open(&path);
    let _ = std::fs::remove_dir(&path);
    if cfg!(unix) {
        assert!(opened.is_ok());
    } else {
        let why = opened.err().map(|e| (e.kind(), e.to_string()));
        assert!(
            why.is_some_and(|(k, text)| k == std::io::ErrorKind::Unsupported && text.contains("executed"))
        );
    }
}
