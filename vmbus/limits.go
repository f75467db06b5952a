package vmbus

import "time"

// Bounds of what a guest can make the server hold.
const (
	// MaxChannels is how many channels there can be: relids are event flag
	// numbers 1 to 2047 of one SINT (TLFS, HV_EVENT_FLAGS_COUNT).
	MaxChannels = 2047

	// inboxSize bounds the guest's messages that wait for the server. Linux
	// has one request of each VP on its way, and the bodies of one GPADL; it
	// tries again when told that buffers are short.
	inboxSize = 64

	// MaxGPADLs bounds complete and incomplete GPADLs. Linux makes one per
	// channel, and two more for a network device.
	MaxGPADLs = 8192

	// MaxPartialGPADLs bounds GPADLs whose bodies have not all arrived. Linux
	// sends the messages of one after the other, per VP.
	MaxPartialGPADLs = 64

	// MaxGPADLPages bounds the pages of all GPADLs of a guest: 8 GiB of guest
	// memory, 16 MiB of page numbers here (see proto.RangeCost for many small
	// ranges). Hyper-V allows 1280 MiB.
	MaxGPADLPages = 2 << 20
)

// Once a channel is open, its guest is signalled again if packets lie unread
// after these times. Linux's storvsc ignores an interrupt that overtakes the
// OPENCHANNEL_RESULT, which waits for a message slot; the ring is not empty
// then, so no other signal would follow.
var unstickAfter = [...]time.Duration{
	50 * time.Millisecond, 200 * time.Millisecond, 800 * time.Millisecond, 3200 * time.Millisecond,
}
