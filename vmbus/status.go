package vmbus

import "github.com/hvpost/hvpost/vmbus/proto"

// Status is what a server and its guest have come to.
type Status struct {
	Connected bool            `json:"connected"`
	Version   proto.Version   `json:"version"` // of the connection, 0.0 without one
	Channels  []ChannelStatus `json:"channels"`
}

// A ChannelState tells how far a channel has come.
type ChannelState string

// Channel states.
const (
	StatePending   ChannelState = "pending"   // the guest has not been told
	StateOffered   ChannelState = "offered"   // the guest has not opened it
	StateOpen      ChannelState = "open"      // a device serves it
	StateClosing   ChannelState = "closing"   // the device still ends
	StateStopped   ChannelState = "stopped"   // open, but the device has ended
	StateRescinded ChannelState = "rescinded" // the guest has not let go of it
)

// A ChannelStatus is the state of one channel.
type ChannelStatus struct {
	Name       string       `json:"name"`
	Type       proto.GUID   `json:"type"`
	Instance   proto.GUID   `json:"instance"`
	SubChannel uint16       `json:"sub_channel,omitempty"`
	RelID      proto.RelID  `json:"relid"`
	State      ChannelState `json:"state"`
	Error      string       `json:"error,omitempty"` // why the device has ended
}

// Status returns a snapshot, by ascending relid. After Close it is the last
// one.
func (s *Server) Status() Status {
	var st Status
	if !s.do(func() { st = s.status() }) {
		st = s.final
	}
	return st
}

func (s *Server) status() Status {
	st := Status{Connected: s.conn.version != proto.VersionInvalid, Version: s.conn.version}
	for _, c := range s.channels {
		if c == nil {
			continue
		}
		cs := ChannelStatus{Name: c.offer.Name, Type: c.offer.Type, Instance: c.offer.Instance,
			SubChannel: c.offer.SubChannel, RelID: c.relid, State: c.state()}
		if c.err != nil {
			cs.Error = c.err.Error()
		}
		st.Channels = append(st.Channels, cs)
	}
	return st
}

func (c *channel) state() ChannelState {
	switch {
	case c.rescinded:
		return StateRescinded
	case c.run != nil && c.open:
		return StateOpen
	case c.run != nil:
		return StateClosing
	case c.open:
		return StateStopped
	case c.offered:
		return StateOffered
	}
	return StatePending
}
