// Package inside is PID 1 of the emulated host: it loads the modules that make /dev/kvm, mounts, and runs the
// commands that arrive over a virtio-serial port.
//
// The real host's root file system comes over 9p, read-only. Every command gets a mount of its own of it, in a mount
// namespace of its own, below an overlay with a tmpfs: so a command sees files as they are when it starts (a rebuilt
// binary is never stale, whatever runs beside it), its writes go nowhere, and its page cache is its own. The kernel's
// 9p client can cache freely below one command (cache=loose), because no command outlives its mount. What commands
// share is /run, /dev/shm and one writable directory of the real host for results.
//
// Every command also has a control group of its own, so that nothing it started outlives it.
//
// The package must not know how the machine was started; it is the guest's end only.
package inside
