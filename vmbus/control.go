package vmbus

import (
	"slices"

	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// A connection is what guest and server agreed on.
type connection struct {
	version   proto.Version // VersionInvalid: not connected
	vp        hv.VPIndex    // where messages go
	requested bool          // the guest asked for offers
}

// supported reports whether v is a version, and none newer than newest.
func supported(v, newest proto.Version) bool {
	return v <= newest && slices.Contains(proto.Versions, v)
}

// decode decodes a guest's message; one that is too short is logged and
// ignored, because it does not even name what to answer for.
func (s *Server) decode(b []byte, m proto.Message) (rest []byte, ok bool) {
	rest, err := proto.Decode(b, m)
	if err != nil {
		s.log.printf("guest: %v: ignored", err)
		return nil, false
	}
	return rest, true
}

// handle takes one message of the guest.
func (s *Server) handle(m *hv.Message) {
	if m.Type != hv.MessageVMBus {
		s.log.printf("guest: SynIC message of type %#x: ignored", uint32(m.Type))
		return
	}
	b := m.Bytes()
	t, ok := proto.TypeOf(b)
	if !ok {
		s.log.printf("guest: channel message of %d bytes: ignored", len(b))
		return
	}
	switch t {
	case proto.MsgInitiateContact:
		var m proto.InitiateContact
		if _, ok := s.decode(b, &m); ok {
			s.initiateContact(m)
		}
		return
	case proto.MsgUnload:
		s.unload()
		return
	}
	if s.conn.version == proto.VersionInvalid {
		s.log.printf("guest: %v without a connection: ignored", t)
		return
	}
	switch t {
	case proto.MsgRequestOffers:
		s.requestOffers()
	case proto.MsgOpenChannel:
		var m proto.OpenChannel
		if _, ok := s.decode(b, &m); ok {
			s.openChannel(m)
		}
	case proto.MsgCloseChannel:
		var m proto.CloseChannel
		if _, ok := s.decode(b, &m); ok {
			s.closeChannel(m.RelID)
		}
	case proto.MsgGPADLHeader:
		var m proto.GPADLHeader
		if rest, ok := s.decode(b, &m); ok {
			s.gpadlHeader(m, rest)
		}
	case proto.MsgGPADLBody:
		var m proto.GPADLBody
		if rest, ok := s.decode(b, &m); ok {
			s.gpadlBody(m, rest)
		}
	case proto.MsgGPADLTeardown:
		var m proto.GPADLTeardown
		if _, ok := s.decode(b, &m); ok {
			s.gpadlTeardown(m)
		}
	case proto.MsgRelIDReleased:
		var m proto.RelIDReleased
		if _, ok := s.decode(b, &m); ok {
			s.relIDReleased(m.RelID)
		}
	case proto.MsgModifyChannel:
		var m proto.ModifyChannel
		if _, ok := s.decode(b, &m); ok {
			s.modifyChannel(m)
		}
	case proto.MsgTLConnectRequest:
		var m proto.TLConnectRequest
		if _, ok := s.decode(b, &m); ok {
			s.tlConnect(m)
		}
	default:
		// Types of the host's side, reserved channels, 6.0, and unknown ones.
		s.log.printf("guest: %v: ignored", t)
	}
}

// initiateContact begins a connection. A guest that still has one has started
// anew without telling (kexec, reset of its own): everything of the old one
// goes first.
func (s *Server) initiateContact(m proto.InitiateContact) {
	if s.conn.version != proto.VersionInvalid {
		s.reopenPort()
		s.teardown(drain{reply: func() { s.contact(m) }})
		return
	}
	s.contact(m)
}

func (s *Server) contact(m proto.InitiateContact) {
	refuse := ""
	vp := hv.VPIndex(0) // where messages of protocols before 3.0 go
	switch {
	case !supported(m.Version, s.cfg.MaxVersion):
		refuse = "version not supported"
	case m.TargetVP >= uint32(s.cfg.VPs):
		refuse = "no such VP"
	case m.Version >= proto.Version5_0 && (m.SINT() != SINT || m.VTL() != 0):
		refuse = "messages only to SINT 2, VTL 0"
	case (m.Monitor1 == 0) != (m.Monitor2 == 0):
		refuse = "one monitor page without the other"
	}
	if m.TargetVP < uint32(s.cfg.VPs) && m.Version >= proto.VersionWin81 {
		vp = hv.VPIndex(m.TargetVP)
	}
	s.conn = connection{vp: vp}
	if refuse != "" {
		s.log.printf("guest: contact with version %v, VP %d: %s", m.Version, m.TargetVP, refuse)
		s.send(proto.VersionResponse{})
		return
	}
	s.conn.version = m.Version
	r := proto.VersionResponse{Supported: 1, State: proto.ConnectionSuccessful, Selected: uint32(m.Version)}
	if m.Version >= proto.Version5_0 {
		r.Selected = uint32(MessageConnection)
	}
	s.send(r)
}

// unload ends the connection; the answer says that the guest has its memory
// back. It is given even to a guest without a connection, which would wait for
// it without end.
func (s *Server) unload() {
	s.teardown(drain{reply: func() { s.send(proto.UnloadResponse{}) }})
}

func (s *Server) requestOffers() {
	if s.conn.requested {
		s.log.printf("guest: %v for the second time: ignored", proto.MsgRequestOffers)
		return
	}
	s.conn.requested = true
	for _, c := range s.channels {
		if c != nil {
			s.tryOffer(c)
		}
	}
	s.send(proto.AllOffersDelivered{})
}

// tlConnect refuses hv_sock connections: nothing listens here. Before 4.1
// there is no such answer; the guest's connect times out.
func (s *Server) tlConnect(m proto.TLConnectRequest) {
	if s.conn.version < proto.Version4_1 {
		s.log.printf("guest: %v with version %v: ignored", proto.MsgTLConnectRequest, s.conn.version)
		return
	}
	s.send(proto.TLConnectResult{Endpoint: m.Endpoint, Service: m.Service, Status: proto.StatusConnectionRefused})
}

// A drain is the end of all channels at once, on the guest's wish (unload,
// contact) or the host's (reset, close).
type drain struct {
	reset bool     // the guest is not there any more to be answered
	reply func()   // what the guest hears when all is over, or nil
	done  []func() // what the host hears
}

// teardown disconnects, ends all channels, and when the last Serve has
// returned forgets all that belongs to the connection.
func (s *Server) teardown(d drain) {
	s.conn = connection{vp: s.conn.vp}
	if d.reset {
		s.conn.vp = 0
	}
	s.out = nil
	if old := s.drain; old != nil {
		// Only the host interrupts a drain: messages are not read during one.
		if !d.reset {
			d.reply = old.reply
		}
		d.done = append(d.done, old.done...)
	}
	s.drain = &d
	for _, c := range s.channels {
		if c != nil {
			c.open, c.reopen = false, nil
			s.stop(c)
		}
	}
	s.finishDrain()
}

// finishDrain ends a drain once nothing runs any more.
func (s *Server) finishDrain() {
	d := s.drain
	if d == nil || s.live > 0 {
		return
	}
	s.drain = nil
	clear(s.gpadls)
	clear(s.partial)
	s.pages = 0
	for id, c := range s.channels {
		if c == nil {
			continue
		}
		c.offered, c.err = false, nil
		if c.rescinded || c.parent != nil {
			s.channels[id] = nil
		}
	}
	if d.reply != nil && !s.closed {
		d.reply()
	}
	for _, f := range d.done {
		f()
	}
}
