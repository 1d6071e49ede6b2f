//! PKCS#11 modules: loaded and initialised once for the process, as the standard asks (PKCS#11 3.1,
//! section 5.4), and shared by all roots in their tokens.
//!
//! Initialising a module again, which some need after their token was away, makes every session handle
//! void, and the numbers are used again. So sessions belong to an *epoch*, and whoever is about to call
//! with a handle holds [`Module::enter`]'s guard and looks whether the epoch is still that of the handle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::error::Pkcs11Error;
use super::pin::PinGuard;

/// All modules of this process. They stay loaded: a library that is unloaded under its own threads
/// crashes.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// How long a restart waits for calls that are inside the module.
const INSIDE_MAX: Duration = Duration::from_millis(500);

pub(super) struct Module {
    context: Pkcs11,
    /// The epoch. Written only while nobody is inside the module.
    epoch: RwLock<u64>,
    /// By the serial number of the token.
    pins: Mutex<BTreeMap<String, PinGuard>>,
}

/// Ends the use of every PKCS#11 module by this process, which is about to exit: its exit handlers take a
/// module's memory apart, and a thread that is inside one then crashes. Waits for such threads for at most half a
/// second a module, finalises it, and lets nobody in any more: later calls wait until the process is gone.
pub fn leave_pkcs11_modules() {
    let modules: Vec<Arc<Module>> = MODULES.lock().values().map(Arc::clone).collect();
    for module in modules {
        if let Some(epoch) = module.epoch.try_write_for(INSIDE_MAX) {
            // It may be finalised already.
            let _ = module.context.clone().finalize();
            std::mem::forget(epoch);
        }
    }
}

fn initialize(context: &Pkcs11) -> Result<(), Error> {
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        outcome => outcome,
    }
}

impl Module {
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, Pkcs11Error> {
        let failed = |why: &dyn std::fmt::Display| Pkcs11Error::Module {
            module: path.to_owned(),
            why: why.to_string(),
        };
        let real = path.canonicalize().map_err(|error| failed(&error))?;
        let mut modules = MODULES.lock();
        if let Some(module) = modules.get(&real) {
            return Ok(Arc::clone(module));
        }
        let context = Pkcs11::new(&real).map_err(|error| failed(&error))?;
        initialize(&context).map_err(|error| failed(&error))?;
        let module = Arc::new(Self { context, epoch: RwLock::new(0), pins: Mutex::default() });
        modules.insert(real, Arc::clone(&module));
        Ok(module)
    }

    pub(super) fn context(&self) -> &Pkcs11 {
        &self.context
    }

    /// The epoch, which does not change while this is held.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, u64> {
        self.epoch.read_recursive()
    }

    /// Initialises the module anew, unless that was done since the epoch `seen`, or another thread is inside
    /// it for longer than a call that works takes: it is stuck.
    pub(super) fn restart(&self, seen: u64) -> Result<(), Pkcs11Error> {
        let Some(mut epoch) = self.epoch.try_write_for(INSIDE_MAX) else {
            return Err(Pkcs11Error::Failed("another call is inside the module".to_owned()));
        };
        if *epoch != seen {
            return Ok(());
        }
        *epoch += 1;
        // It may be finalised already: what counts is the next call.
        let _ = self.context.clone().finalize();
        initialize(&self.context).map_err(|error| Pkcs11Error::Failed(error.to_string()))
    }

    /// What is known of the PIN of a token.
    pub(super) fn with_pins<T>(&self, serial: &str, work: impl FnOnce(&mut PinGuard) -> T) -> T {
        work(self.pins.lock().entry(serial.to_owned()).or_default())
    }
}
