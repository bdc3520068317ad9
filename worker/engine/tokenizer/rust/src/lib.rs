//! C ABI over Hugging Face `tokenizers`; see ../quantry_tokenizer.h for the
//! contract. Nothing unwinds out of here: a panic becomes an error.

use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;

use tokenizers::Tokenizer;

mod pieces;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

pub struct QtTokenizer(Tokenizer);

fn set_error(message: String) {
    LAST_ERROR.with(|slot| *slot.borrow_mut() = message);
}

/// Runs `body`; 0 when it succeeds, -1 with LAST_ERROR set otherwise.
fn guarded(body: impl FnOnce() -> Result<(), String>) -> i32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(message)) => {
            set_error(message);
            -1
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown".to_string());
            set_error(format!("the tokenizer panicked: {text}"));
            -1
        }
    }
}

/// # Safety
/// `json` points to `length` readable bytes, `out` to a writable pointer.
#[no_mangle]
pub unsafe extern "C" fn qt_load(json: *const u8, length: usize, out: *mut *mut QtTokenizer) -> i32 {
    guarded(|| {
        let bytes = slice::from_raw_parts(json, length);
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
        // A training leftover in the file must not cut or pad the text.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        *out = Box::into_raw(Box::new(QtTokenizer(tokenizer)));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` comes from qt_load; `text` points to `length` readable bytes;
/// `ids` and `count` are writable. The ids go back through qt_free_ids.
#[no_mangle]
pub unsafe extern "C" fn qt_encode(
    tokenizer: *const QtTokenizer,
    text: *const u8,
    length: usize,
    piece: usize,
    ids: *mut *mut u32,
    count: *mut usize,
) -> i32 {
    guarded(|| {
        let tokenizer = &(*tokenizer).0;
        let text = std::str::from_utf8(slice::from_raw_parts(text, length)).map_err(|e| e.to_string())?;
        let in_pieces = if piece > 0 { pieces::encode(tokenizer, text, piece)? } else { None };
        let found: Box<[u32]> = match in_pieces {
            Some(found) => found.into(),
            None => tokenizer.encode_fast(text, false).map_err(|e| e.to_string())?.get_ids().into(),
        };
        *count = found.len();
        *ids = Box::into_raw(found) as *mut u32;
        Ok(())
    })
}

/// # Safety
/// As qt_encode.
#[no_mangle]
pub unsafe extern "C" fn qt_encode_prompt(
    tokenizer: *const QtTokenizer,
    text: *const u8,
    length: usize,
    ids: *mut *mut u32,
    count: *mut usize,
) -> i32 {
    guarded(|| {
        let text = std::str::from_utf8(slice::from_raw_parts(text, length)).map_err(|e| e.to_string())?;
        let encoding = (*tokenizer).0.encode_fast(text, true).map_err(|e| e.to_string())?;
        let found: Box<[u32]> = encoding.get_ids().into();
        *count = found.len();
        *ids = Box::into_raw(found) as *mut u32;
        Ok(())
    })
}

/// # Safety
/// `ids` and `count` are what one qt_encode or qt_encode_prompt gave, freed once.
#[no_mangle]
pub unsafe extern "C" fn qt_free_ids(ids: *mut u32, count: usize) {
    if !ids.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids, count)));
    }
}

/// # Safety
/// `ids` points to `count` ids; `text` and `length` are writable. The text goes
/// back through qt_free_text.
#[no_mangle]
pub unsafe extern "C" fn qt_decode(
    tokenizer: *const QtTokenizer,
    ids: *const u32,
    count: usize,
    text: *mut *mut u8,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        let ids = if count == 0 { &[] } else { slice::from_raw_parts(ids, count) };
        let decoded = (*tokenizer).0.decode(ids, true).map_err(|e| e.to_string())?;
        let bytes = decoded.into_bytes().into_boxed_slice();
        *length = bytes.len();
        *text = Box::into_raw(bytes) as *mut u8;
        Ok(())
    })
}

/// # Safety
/// `text` and `length` are what one qt_decode gave, freed once.
#[no_mangle]
pub unsafe extern "C" fn qt_free_text(text: *mut u8, length: usize) {
    if !text.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(text, length)));
    }
}

/// One more than the largest id; 0 when the vocabulary is empty.
///
/// # Safety
/// `tokenizer` comes from qt_load.
#[no_mangle]
pub unsafe extern "C" fn qt_vocabulary_size(tokenizer: *const QtTokenizer) -> u64 {
    let mut size = 0u64;
    guarded(|| {
        let largest = (*tokenizer).0.get_vocab(true).into_values().max();
        size = largest.map_or(0, |id| u64::from(id) + 1);
        Ok(())
    });
    size
}

/// # Safety
/// `tokenizer` comes from qt_load, freed once.
#[no_mangle]
pub unsafe extern "C" fn qt_free(tokenizer: *mut QtTokenizer) {
    if !tokenizer.is_null() {
        guarded(|| {
            drop(Box::from_raw(tokenizer));
            Ok(())
        });
    }
}

/// Copies this thread's last error, cut to `capacity`; returns its length.
///
/// # Safety
/// `buffer` points to `capacity` writable bytes.
#[no_mangle]
pub unsafe extern "C" fn qt_last_error(buffer: *mut u8, capacity: usize) -> usize {
    LAST_ERROR.with(|slot| {
        let message = slot.borrow();
        let n = message.len().min(capacity);
        std::ptr::copy_nonoverlapping(message.as_ptr(), buffer, n);
        message.len()
    })
}
