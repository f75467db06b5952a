// Package vmm is the virtual machine: it puts KVM, guest memory, the chipset,
// the SynIC and the VMBus server together, runs the virtual processors, and
// says how the machine ended.
//
//	         guest
//	           | exit
//	 VP goroutine (vp.go) -> exit.go: THE exit switch
//	   |            |                |
//	ports.go     synic.VP         synic.Partition.Hypercall
//	chipset      MSRs                | ports
//	                              vmbus.Server -> devices
//
// It is the only package that imports both kvm and the Hyper-V side; nothing
// below it knows of KVM. It knows nothing of Linux, of command lines or of
// terminals: how a kernel is loaded is a function in Config, and package
// session builds test runs on top.
//
// Goroutines: one per VP, locked to its thread, which alone touches the
// vCPU's file descriptor and run page; those of the VMBus server and its
// devices; one for console output. Run returns when all of them have ended.
package vmm
