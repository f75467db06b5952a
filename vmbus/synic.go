package vmbus

import (
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
)

// PartitionHost makes a partition the host of a server.
func PartitionHost(p *synic.Partition) Host { return partitionHost{p} }

type partitionHost struct{ p *synic.Partition }

func (h partitionHost) ConnectMessage(id hv.ConnectionID, m MessageHandler) error {
	return h.p.ConnectMessage(id, m)
}

func (h partitionHost) ConnectEvent(id hv.ConnectionID, flags uint16, e EventHandler) error {
	return h.p.ConnectEvent(id, flags, e)
}

func (h partitionHost) Disconnect(id hv.ConnectionID) { h.p.Disconnect(id) }

func (h partitionHost) OpenMessagePort(id hv.PortID, sint uint8, free func()) MessageSender {
	return h.p.OpenMessagePort(id, sint, free)
}

func (h partitionHost) SignalEvent(vp hv.VPIndex, sint uint8, flag uint16) hv.Status {
	return h.p.SignalEvent(vp, sint, flag)
}
