package vmbus

import (
	"context"
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// A channel is the server's record of a device and of what the guest knows of
// it. It belongs to the server's goroutine.
type channel struct {
	dev    Device
	offer  Offer
	relid  proto.RelID
	parent *channel // of a sub-channel

	offered   bool               // the guest got the offer in this connection
	open      bool               // the guest opened it and did not close it
	rescinded bool               // taken back; the relid is free when the guest says so
	released  bool               // the guest said so
	run       *Channel           // not nil while Serve runs or is about to
	reopen    *proto.OpenChannel // opened again while the last Serve still ends
	err       error              // what Serve returned while the channel was open
	idle      []func()           // to call when run is nil
}

// channel returns the channel of a relid that the guest named, or nil.
func (s *Server) channel(relid proto.RelID) *channel {
	if relid > MaxChannels {
		return nil
	}
	return s.channels[relid]
}

// same reports whether two offers look like one device to the guest.
func same(a, b *Offer) bool {
	return a.Type == b.Type && a.Instance == b.Instance && a.SubChannel == b.SubChannel
}

// add makes a channel for a device and offers it if it is time.
func (s *Server) add(dev Device, o Offer, parent *channel) (*channel, error) {
	for _, c := range s.channels {
		if c != nil && !c.rescinded && same(&c.offer, &o) {
			return nil, ErrDuplicate
		}
	}
	// Ids go round, so that one that was just released is not the next: the
	// guest may still have messages of the old channel on their way.
	for range MaxChannels {
		s.lastID = s.lastID%MaxChannels + 1
		if s.channels[s.lastID] == nil {
			c := &channel{dev: dev, offer: o, relid: s.lastID, parent: parent}
			s.channels[c.relid] = c
			s.tryOffer(c)
			return c, nil
		}
	}
	return nil, ErrNoChannel
}

// tryOffer sends the offer of c if the guest wants to hear of it and does not
// hold a rescinded channel that looks the same: Linux would drop the new one
// as a duplicate, and never give its relid back.
func (s *Server) tryOffer(c *channel) {
	if !s.conn.requested || c.offered || c.rescinded {
		return
	}
	for _, old := range s.channels {
		if old != nil && old.rescinded && same(&old.offer, &c.offer) {
			return // remove tries again
		}
	}
	c.offered = true
	s.send(proto.OfferChannel{
		InterfaceType: c.offer.Type,
		Instance:      c.offer.Instance,
		Flags:         c.offer.Flags,
		MMIOMegabytes: c.offer.MMIOMegabytes,
		UserDefined:   c.offer.UserDefined,
		SubChannel:    c.offer.SubChannel,
		MMIOOptional:  c.offer.MMIOOptional,
		RelID:         c.relid,
		MonitorID:     proto.MonitorNone,
		Dedicated:     proto.OfferDedicated,
		ConnectionID:  uint32(eventConnection(uint32(c.relid))),
	})
}

// rescind takes a channel away, its sub-channels first: Linux waits for them
// when it closes the primary.
func (s *Server) rescind(c *channel) {
	if c.rescinded {
		return
	}
	s.rescindSubs(c)
	c.rescinded, c.reopen = true, nil
	if c.offered && s.conn.version != proto.VersionInvalid {
		s.send(proto.RescindChannelOffer{RelID: c.relid})
	} else {
		c.released = true
	}
	s.stop(c)
	s.remove(c)
}

func (s *Server) rescindSubs(c *channel) {
	for _, sub := range s.channels {
		if sub != nil && sub.parent == c {
			s.rescind(sub)
		}
	}
}

// relIDReleased: the guest has let go of a rescinded channel.
func (s *Server) relIDReleased(relid proto.RelID) {
	c := s.channel(relid)
	if c == nil || !c.rescinded {
		s.log.printf("guest: %v of channel %d, which is not rescinded: ignored", proto.MsgRelIDReleased, relid)
		return
	}
	c.released = true
	s.remove(c)
}

// remove forgets a rescinded channel once guest and device both have let go.
func (s *Server) remove(c *channel) {
	if !c.rescinded || !c.released || c.run != nil || s.channels[c.relid] != c {
		return
	}
	s.channels[c.relid] = nil
	s.gpadlForget(c.relid)
	for _, next := range s.channels {
		if next != nil && same(&next.offer, &c.offer) {
			s.tryOffer(next)
		}
	}
}

// openChannel answers an OPENCHANNEL. Serve starts when the answer is posted.
func (s *Server) openChannel(m proto.OpenChannel) {
	c := s.channel(m.RelID)
	switch {
	case c != nil && c.rescinded:
		// The guest will see the rescind; Hyper-V does not answer either.
		s.log.printf("guest: %v of rescinded channel %d: ignored", proto.MsgOpenChannel, m.RelID)
		return
	case c == nil || !c.offered:
		s.refuseOpen(m, errors.New("no such channel"))
		return
	case c.open || c.reopen != nil:
		s.refuseOpen(m, errors.New("already open"))
		return
	case c.run != nil:
		c.reopen = &m
		return
	}
	ch, err := s.newRun(c, m)
	if err != nil {
		s.refuseOpen(m, err)
		return
	}
	c.run, c.open, c.err = ch, true, nil
	s.live++
	s.sendThen(proto.OpenChannelResult{RelID: m.RelID, OpenID: m.OpenID, Status: proto.StatusSuccess}, func() {
		if c.run == ch && !ch.stopped {
			ch.start()
		}
	})
}

func (s *Server) refuseOpen(m proto.OpenChannel, why error) {
	s.log.printf("guest: open of channel %d: %v", m.RelID, why)
	s.send(proto.OpenChannelResult{RelID: m.RelID, OpenID: m.OpenID, Status: proto.StatusUnsuccessful})
}

// newRun checks what the guest wants to open a channel with, and connects it.
func (s *Server) newRun(c *channel, m proto.OpenChannel) (*Channel, error) {
	if m.TargetVP >= uint32(s.cfg.VPs) && m.TargetVP != proto.NoInterrupts {
		return nil, fmt.Errorf("no VP %d", m.TargetVP)
	}
	g := s.gpadls[gpadlKey{c.relid, m.RingGPADL}]
	if g == nil || g.torn {
		return nil, fmt.Errorf("ring GPADL %#x: %w", uint32(m.RingGPADL), ErrNoGPADL)
	}
	if len(g.ranges) != 1 || g.ranges[0].ByteOffset != 0 || g.ranges[0].ByteCount%guest.PageSize != 0 {
		return nil, fmt.Errorf("ring GPADL %#x: not one range of whole pages", uint32(m.RingGPADL))
	}
	pfns := g.ranges[0].PFNs
	if uint64(m.DownstreamPage) >= uint64(len(pfns)) {
		return nil, fmt.Errorf("ring GPADL %#x of %d pages: second ring at page %d", uint32(m.RingGPADL), len(pfns), m.DownstreamPage)
	}
	ch := newChannel(s, c, m)
	if err := ch.connect(pfns[:m.DownstreamPage], pfns[m.DownstreamPage:]); err != nil {
		ch.cancel()
		return nil, err
	}
	ch.hold(g)
	return ch, nil
}

// closeChannel: the guest closed a channel. There is no answer; the rings are
// the guest's again when their GPADL is torn down.
func (s *Server) closeChannel(relid proto.RelID) {
	c := s.channel(relid)
	if c == nil || !c.open && c.reopen == nil {
		s.log.printf("guest: %v of channel %d, which is not open: ignored", proto.MsgCloseChannel, relid)
		return
	}
	c.open, c.reopen = false, nil
	s.rescindSubs(c)
	s.stop(c)
}

// modifyChannel moves the interrupts of an open channel.
func (s *Server) modifyChannel(m proto.ModifyChannel) {
	c := s.channel(m.RelID)
	status := proto.StatusSuccess
	switch {
	case s.conn.version < proto.Version4_1:
		s.log.printf("guest: %v with version %v: ignored", proto.MsgModifyChannel, s.conn.version)
		return
	case c == nil || !c.open:
		s.log.printf("guest: %v of channel %d, which is not open", proto.MsgModifyChannel, m.RelID)
		status = proto.StatusUnsuccessful
	case m.TargetVP >= uint32(s.cfg.VPs) && m.TargetVP != proto.NoInterrupts:
		s.log.printf("guest: %v of channel %d to VP %d, which does not exist", proto.MsgModifyChannel, m.RelID, m.TargetVP)
		status = proto.StatusInvalidParameter
	case c.run != nil:
		c.run.target.Store(m.TargetVP)
		// A flag that the old VP did not look at any more would be lost.
		c.run.signal()
	}
	if s.conn.version >= proto.Version5_3 {
		s.send(proto.ModifyChannelResult{RelID: m.RelID, Status: status})
	}
}

// stop cancels the Serve of a channel. One that waits for its
// OPENCHANNEL_RESULT to be posted never starts.
func (s *Server) stop(c *channel) {
	ch := c.run
	if ch == nil || ch.stopped {
		return
	}
	ch.stopped = true
	ch.cancel()
	if !ch.started {
		s.ended(ch, nil)
	}
}

// ended: the Serve of a channel has returned. Everything it held is given
// back, and whoever waited for it goes on.
func (s *Server) ended(ch *Channel, err error) {
	c := ch.rec
	ch.end()
	s.cfg.Host.Disconnect(eventConnection(uint32(c.relid)))
	c.run = nil
	s.live--
	for g := range ch.held {
		ch.drop(g)
	}
	if !ch.stopped {
		c.err = err
	}
	if err != nil && !errors.Is(err, ErrRescind) && !errors.Is(err, context.Canceled) {
		s.log.printf("%s, channel %d: %v", c.offer.Name, c.relid, err)
	}
	idle := c.idle
	c.idle = nil
	for _, f := range idle {
		f()
	}
	if errors.Is(err, ErrRescind) {
		s.rescind(c)
	}
	s.remove(c)
	s.finishDrain()
	if m := c.reopen; m != nil && c.run == nil && s.conn.version != proto.VersionInvalid {
		c.reopen = nil
		s.openChannel(*m)
	}
}

// whenIdle calls f when Serve does not run.
func (c *channel) whenIdle(f func()) {
	if c.run == nil {
		f()
		return
	}
	c.idle = append(c.idle, f)
}
