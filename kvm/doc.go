// Package kvm is the typed face of /dev/kvm: System, VM, VCPU and the Exit
// that ends a run of a virtual processor.
//
// It stands on the structs, constants and request encoders of
// github.com/bobuhiro11/gokvm/kvm and on golang.org/x/sys/unix, and adds what
// a monitor with its own Hyper-V surface needs besides: capabilities, MSR
// filters, synchronised registers, message-signalled interrupts, irqfd and
// ioeventfd, guest debugging, and kicks.
//
// # What it must not know
//
// Nothing here knows of Hyper-V, of devices or of guest RAM: memory enters as
// a host address, exits leave as values. It imports no other package of this
// module, and nothing below package vmm imports it.
//
// # Threads
//
// A VCPU belongs to one goroutine, which calls LockThread, then Run in a
// loop, then UnlockThread. Kick is the only method that others may call while
// it runs. All other methods of VCPU are calls into the kernel that wait until
// KVM_RUN has returned, or touch the run page, which the kernel owns during
// KVM_RUN; they belong to the owner too.
//
// Inside KVM_RUN every signal is masked except the one of Kick and the three
// that the Go runtime and C libraries address to single threads, so SIGURG,
// with which the runtime preempts goroutines, never ends a run.
//
// # Errors
//
// The kernel and the caller are trusted, the guest is not: whatever a guest
// does arrives as an Exit. An error means that the host refused.
package kvm
