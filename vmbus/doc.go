// Package vmbus is the host's end of VMBus: it offers devices to a guest,
// speaks the control protocol over SynIC messages, and gives every channel
// that the guest opens to its device.
//
//	guest ── messages ──▶ inbox ─▶ Server goroutine ─▶ outbox ──▶ guest's SINT 2
//	                                 │ starts, cancels
//	guest ── signals ───▶ Channel ◀──┴── Device.Serve, one goroutine per open channel
//	         rings, GPADLs ─ guest.Memory ─┘
//
// One goroutine owns the connection, the channels and the GPADL table, so they
// have no locks; the guest, the devices and the host reach it by messages.
// Nothing of the guest's runs on a virtual processor beyond copying a message
// into a bounded queue. While answers to the guest wait for its message slot,
// its further messages are not read, so a guest that asks without listening
// only stops itself.
//
// A channel's memory is given back in one order only: the guest closes, the
// device's context is cancelled, Serve returns when its I/O has drained, the
// references to GPADLs drop, and then GPADL_TORNDOWN may go out.
//
// The package knows messages, rings and GPADLs, but no device's protocol; and
// it knows its hypervisor only as the interface Host. It does not know KVM.
// Sequences and sizes are those of Linux drivers/hv.
package vmbus
