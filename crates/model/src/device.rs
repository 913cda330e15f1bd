//! The compute device: finds CUDA at run time and checks that libtorch is the version that we were built for.
//!
//! CUDA support is a separate library, `libtorch_cuda.so`. Loading it makes CUDA known to the libtorch that is already
//! there, so one binary serves machines with and without a GPU.

// Loading a library and calling a C function by name are unsafe; see the SAFETY comments.
#![allow(unsafe_code)]

use crate::ModelError;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use tch::{Cuda, Device, Kind};
use types::Dtype;

/// The libtorch version that tch is compiled against; any patch level of it will do.
pub const LIBTORCH_VERSION: (u8, u8) = (2, 11);

const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// The CUDA runtime that libtorch 2.11 is built with.
const CUDA_RUNTIME: &str = "libcudart.so.13";

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let number = |text: &str| text.parse().ok().filter(|number| *number < 1024);
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number).map(Self::Cuda),
        }
        .ok_or_else(|| ModelError::Device(format!("'{text}' is no device; write auto, cpu, cuda or cuda:N")))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Returns libtorch's name of a dtype.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
    }
}

impl DeviceChoice {
    /// Returns the device to compute on. Call it once, before any tensor is made: libtorch asks for CUDA only once.
    ///
    /// # Errors
    /// [`ModelError::Device`] if libtorch is of another version, or a GPU is asked for that is not there.
    pub fn open(self) -> Result<Device, ModelError> {
        let version = libtorch_version()?;
        let device = match (self, cuda_devices()) {
            (Self::Cpu, _) | (Self::Auto, Err(_) | Ok(0)) => Device::Cpu,
            (Self::Auto, Ok(_)) => Device::Cuda(0),
            (Self::Cuda(number), Ok(count)) if (number as i64) < count => Device::Cuda(number),
            (Self::Cuda(number), Ok(count)) => {
                return Err(ModelError::Device(format!(
                    "cuda:{number} was asked for, but libtorch sees {count} GPUs; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
                )));
            }
            (Self::Cuda(number), Err(reason)) => {
                return Err(ModelError::Device(format!(
                    "cuda:{number} was asked for, but CUDA support cannot be loaded: {reason}; point LIBTORCH to a CUDA build of libtorch {}.{} or use --device cpu",
                    LIBTORCH_VERSION.0, LIBTORCH_VERSION.1
                )));
            }
        };
        tracing::info!(device = ?device, libtorch = %version, threads = tch::get_num_threads(), "device chosen");
        Ok(device)
    }
}

/// Sets how many threads a tensor operation on the CPU may use. Results do not depend on it beyond rounding.
pub fn set_threads(threads: u32) {
    tch::set_num_threads(threads.clamp(1, 1024) as i32);
}

/// Returns the version of the libtorch that is loaded, such as `2.11.0`.
///
/// # Errors
/// [`ModelError::Device`] if it is not [`LIBTORCH_VERSION`]: tch would call functions by another layout.
pub fn libtorch_version() -> Result<String, ModelError> {
    static VERSION: OnceLock<Option<u64>> = OnceLock::new();
    check_version(*VERSION.get_or_init(loaded_version))
}

/// Returns libtorch's own word on its version: one byte each of major, minor and patch from the top.
fn loaded_version() -> Option<u64> {
    // SAFETY: the symbol is a C function without parameters that returns a constant, in every libtorch that has it.
    unsafe {
        let version = Library::this().get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0").ok()?;
        Some(version())
    }
}

fn check_version(found: Option<u64>) -> Result<String, ModelError> {
    let (major, minor) = LIBTORCH_VERSION;
    let advice = "set LIBTORCH to a matching libtorch and build again, or unset it and run 'make setup'";
    let Some(found) = found else {
        return Err(ModelError::Device(format!(
            "the libtorch that is loaded does not say its version, so it is not {major}.{minor}; {advice}"
        )));
    };
    let [found_major, found_minor, patch, ..] = found.to_be_bytes();
    let text = format!("{found_major}.{found_minor}.{patch}");
    if (found_major, found_minor) == (major, minor) {
        return Ok(text);
    }
    Err(ModelError::Device(format!(
        "libtorch {text} is loaded, but this program was built for {major}.{minor}; {advice}"
    )))
}

/// Returns how many GPUs libtorch can use, or why it can use none. Loads CUDA support at the first call.
fn cuda_devices() -> Result<i64, String> {
    static DEVICES: OnceLock<Result<i64, String>> = OnceLock::new();
    DEVICES
        .get_or_init(|| {
            // SAFETY: the library belongs to the libtorch that is already loaded; its initialisers register CUDA with
            // it and do nothing else. It stays loaded until the process ends.
            let loaded = unsafe { Library::open(Some(CUDA_LIBRARY), RTLD_NOW | RTLD_GLOBAL) };
            let library = loaded.map_err(|error| format!("{CUDA_LIBRARY}: {}", cause(&error)))?;
            std::mem::forget(library);
            Ok(if Cuda::is_available() { Cuda::device_count() } else { 0 })
        })
        .clone()
}

/// Returns how much memory of a GPU is in use, by all processes; `None` for the CPU, and where CUDA does not say.
pub fn memory_used(device: Device) -> Option<u64> {
    let Device::Cuda(number) = device else { return None };
    let number = i32::try_from(number).ok()?;
    // SAFETY: the CUDA runtime is the one that libtorch has loaded, so that opening it by name only finds it again. Both
    // functions are part of its stable C interface, are safe from any thread, and write only to the two numbers.
    unsafe {
        let runtime = Library::open(Some(CUDA_RUNTIME), RTLD_NOW).ok()?;
        let select = runtime.get::<unsafe extern "C" fn(i32) -> i32>(b"cudaSetDevice\0").ok()?;
        let info = runtime.get::<unsafe extern "C" fn(*mut usize, *mut usize) -> i32>(b"cudaMemGetInfo\0").ok()?;
        let (mut free, mut total) = (0, 0);
        (select(number) == 0 && info(&raw mut free, &raw mut total) == 0).then(|| (total - free) as u64)
    }
}

/// Returns the innermost message of an error.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:99999", "CPU"] {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_loaded_libtorch_is_the_one_we_were_built_for() {
        assert!(libtorch_version().unwrap().starts_with("2.11."));
    }

    #[test]
    fn another_libtorch_is_refused_by_its_number() {
        let error = check_version(Some(0x020A_0100_0000_0000)).unwrap_err().to_string();
        assert!(error.contains("libtorch 2.10.1 is loaded") && error.contains("built for 2.11"), "{error}");
        assert!(check_version(None).unwrap_err().to_string().contains("make setup"));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_and_auto_is_not() {
        assert!(DeviceChoice::Cuda(1000).open().is_err());
        assert!(DeviceChoice::Auto.open().is_ok());
        assert_eq!(DeviceChoice::Cpu.open().unwrap(), Device::Cpu);
    }
}
