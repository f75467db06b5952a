// Package synic is the hypervisor that a guest sees: synthetic MSRs, the
// hypercalls, ports and connections, and the synthetic interrupt controller
// (SynIC) with its message queues, event flags and timers.
//
//	guest: wrmsr, rdmsr ──► VP.ReadMSR, VP.WriteMSR
//	guest: call page    ──► Partition.Trap ──► Partition.Hypercall
//	                           │ connection ──► port
//	                           ▼
//	   host: MessagePort, EventPort   or   guest: SIM slot, SIEF flag
//	                                         ▲            │
//	host: SendPort.Post, SignalEvent ────────┘            ▼
//	                                            Interrupter (the LAPIC)
//
// A Hypervisor owns Partitions, a Partition its VPs and its connections. The
// host's VMBus server is a client of ports like any guest.
//
// The package knows nothing of KVM and needs no VM: traps come in as method
// calls, interrupts go out through an Interrupter, time comes from a Clock.
// It knows nothing of VMBus either: messages are opaque to it.
//
// # Locks
//
// Partition.mu guards the partition-wide registers and which page lies where.
// VP.mu guards the rest of a VP. The order is Partition.mu, then VP.mu; no
// lock of this package is acquired under VP.mu, and no two VP.mu are held at
// once. Connections are looked up without a lock.
//
// Called with VP.mu held, and therefore not allowed to block or to call back
// into a Partition: Interrupter, Alarm.Set, Clock. Interrupts are raised
// under the lock on purpose: when a guest's write has masked a SINT, or a
// Reset has returned, no interrupt of an earlier message is still on its way.
// Everything else is called with no lock held.
//
// # Overlay pages
//
// The hypercall page, SIMP, SIEFP, the VP assist page and the reference TSC
// page are overlays (TLFS "Overlay Pages"): they have content of their own,
// which is kept while they are disabled or moved, and they cover guest RAM
// without changing it. An overlay on RAM is played by saving the RAM and
// writing the content there; taking it away saves the content and puts the
// RAM back. An overlay that lies outside RAM or under another overlay keeps
// working, but its content is out of the guest's sight. A guest that moves a
// page while another of its VPs writes to it may lose that write.
package synic
