// Package ic is the host's end of the integration components: small services
// that a guest's hv_utils driver answers. Each is a vmbus.Device.
//
//	Heartbeat   is the guest's kernel alive
//	Shutdown    asks the guest to power off or to restart
//	TimeSync    sets the guest's clock, and feeds its /dev/ptp_hyperv
//
// They share a message format and a version negotiation, which the host begins
// as soon as the guest has opened the channel. Linux reads a single packet per
// interrupt on most of these channels, so one packet is in flight at a time:
// every request waits for its answer. A guest that answers nonsense loses that
// service, not more.
//
// Nothing here polls. An idle guest costs one exchange (an interrupt, and a
// signal back) per heartbeat and per time sample: 0.7 a second at the default
// intervals. At 150 µs each on the slowest KVM known, that is a hundredth of a
// percent of a processor.
//
// The package does not know how the machine is switched off or what a time
// server is. Layouts are those of Linux include/linux/hyperv.h.
package ic
