//! Windows: a section of the paging file, of which one view can be written and another executed (`CreateFileMappingW`,
//! `MapViewOfFile`). Its pages are charged when it is made, and taken when they are touched.
use std::io;
use std::ptr::null;
use windows_sys::Win32::Foundation::{CloseHandle, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_EXECUTE, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS,
    MapViewOfFile, PAGE_EXECUTE_READWRITE, UnmapViewOfFile,
};

pub(super) use super::mapping::Mapping;

/// Takes a view away.
///
/// # Safety
/// It is one of this module's, and nobody has an address in it any more.
pub(super) unsafe fn unmap(view: *mut u8, _: usize) {
    // SAFETY: as the caller has promised.
    unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: view.cast() }) };
}

/// Maps views of a new section with these rights; the second is the first if there are none for it.
fn views(len: usize, first: u32, second: Option<u32>) -> io::Result<Mapping> {
    let size = len as u64;
    // SAFETY: no name and no attributes; a section of the paging file.
    let section = unsafe {
        let (high, low) = ((size >> 32) as u32, size as u32);
        CreateFileMappingW(INVALID_HANDLE_VALUE, null(), PAGE_EXECUTE_READWRITE, high, low, null())
    };
    if section.is_null() {
        return Err(io::Error::last_os_error());
    }
    let view = |rights: u32| {
        // SAFETY: a new view of the whole section, at an address of the system's choice.
        let at: *mut u8 = unsafe { MapViewOfFile(section, rights, 0, 0, len) }.Value.cast();
        if at.is_null() { Err(io::Error::last_os_error()) } else { Ok(at) }
    };
    let mapping = view(first).and_then(|write| {
        // SAFETY: the view just made.
        let mapping = unsafe { Mapping::new(write, len) };
        match second {
            Some(rights) => mapping.twice(|_, _| view(rights)),
            None => Ok(mapping),
        }
    });
    // SAFETY: the handle is this function's own; views keep the section.
    unsafe { CloseHandle(section) };
    mapping
}

/// One view to be written and executed.
pub(super) fn single(len: usize) -> io::Result<Mapping> {
    views(len, FILE_MAP_WRITE | FILE_MAP_EXECUTE, None)
}

/// Two views of the same memory: one to be written, one to be executed.
pub(super) fn dual(len: usize) -> io::Result<Mapping> {
    views(len, FILE_MAP_WRITE, Some(FILE_MAP_READ | FILE_MAP_EXECUTE))
}
