//! Ends the process when something asks for more memory at once than any input of a target can have a use for.
//!
//! libFuzzer's own limits see memory that is touched, or asked for through `malloc` in a build with a sanitizer. A vector
//! that a header made large, and that nothing ever filled, goes by both of them on a machine that overcommits.

#![allow(unsafe_code, reason = "an allocator is unsafe to implement; this one only passes on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};

/// Inputs have 64 KiB at most, and what they are unpacked to a thousand times that.
const MOST_AT_ONCE: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

struct Limited;

// SAFETY: every call goes to the system's allocator with the arguments it came with, or does not return.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// An allocator may not unwind; libFuzzer reports an abort with its stack and keeps the input.
fn check(bytes: usize) {
    if bytes > MOST_AT_ONCE {
        eprintln!("asked for {bytes} bytes at once, more than {MOST_AT_ONCE}");
        std::process::abort();
    }
}
