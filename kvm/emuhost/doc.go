// Package emuhost runs commands where a real /dev/kvm is: in an emulated host, which QEMU's TCG gives anywhere.
// QEMU emulates a CPU with SVM; a stock Linux kernel in it loads kvm_amd; the root file system is the real host's,
// shared read-only over 9p.
//
//	client (Exec) --Unix socket--> daemon (Serve) --virtio-serial--> PID 1 (package inside) --> command
//
// Up starts the daemon, one per instance name, by executing the program again; it owns QEMU and ends after a time
// without commands, on Down, on SIGTERM, and with QEMU. QEMU ends with the daemon, even when that is killed. RunOnce has
// an instance of its own that ends with the caller.
//
// A command sees the files of the real host as they are when it starts, with a private writable layer above that is
// gone when it ends, and so are all processes it started. Shared between the commands of an instance are /run, /dev/shm and
// the exchange directory, through which results reach the real host: see Outputs.
//
// The program's main must call Intercept first: the same binary is the daemon and PID 1 inside, and therefore must be
// statically linked.
//
// The package stands beside kvm and below everything else; it must not know what the commands are, nor where kernels
// come from (Config.Kernel).
package emuhost
