package vmbus

import (
	"github.com/hvpost/hvpost/synic/hv"
)

// SINT is the synthetic interrupt source of all messages and signals to the
// guest (Linux VMBUS_MESSAGE_SINT).
const SINT uint8 = 2

// Connections on which guests post messages. Guests of protocol 5.0 and newer
// begin on the second one.
const (
	MessageConnection  hv.ConnectionID = 1
	MessageConnection4 hv.ConnectionID = 4
)

// messagePort is the number the server's port has in the messages it sends.
const messagePort hv.PortID = 1

// eventConnection returns the connection on which the guest signals a channel.
// Offers carry it; guests do not assume it.
func eventConnection(relid uint32) hv.ConnectionID { return hv.ConnectionID(0x2000 | relid) }

// A MessageHandler takes messages that the guest posted. It runs on the
// posting VP and must not block.
type MessageHandler interface {
	HandleMessage(m hv.Message) hv.Status
}

// An EventHandler takes signals of the guest. It must not block.
type EventHandler interface {
	HandleEvent(flag uint16)
}

// A MessageSender sends messages to one SINT of the guest's VPs.
type MessageSender interface {
	// Post sends m; success means queued. hv.StatusInsufficientBuffers means
	// that the free function of OpenMessagePort will be called. It never
	// blocks.
	Post(vp hv.VPIndex, m hv.Message) hv.Status
	// Close drops what is queued.
	Close()
}

// A Host is what the server needs of the partition it serves: a thin view of
// synic.Partition, see PartitionHost.
type Host interface {
	ConnectMessage(id hv.ConnectionID, h MessageHandler) error
	// ConnectEvent connects flags 0 to flags-1 of id.
	ConnectEvent(id hv.ConnectionID, flags uint16, h EventHandler) error
	// Disconnect waits until no handler of id runs any more.
	Disconnect(id hv.ConnectionID)
	// OpenMessagePort makes a sender. free is called when there is room again
	// after Post had answered hv.StatusInsufficientBuffers.
	OpenMessagePort(id hv.PortID, sint uint8, free func()) MessageSender
	// SignalEvent sets an event flag of a VP, from any goroutine.
	SignalEvent(vp hv.VPIndex, sint uint8, flag uint16) hv.Status
}
