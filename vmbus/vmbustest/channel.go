package vmbustest

import (
	"context"
	"fmt"
	"sync"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
)

// A Channel is the guest's end of an offered channel. One goroutine at a time
// may receive and one may send.
type Channel struct {
	Offer proto.OfferChannel

	g         *Guest
	rescinded chan struct{} // closed
	wake      chan struct{} // readable, for Recv
	room      chan struct{} // writable, for Send

	mu     sync.Mutex
	open   bool
	ringID proto.GPADLID
	pages  map[proto.GPADLID][]uint64 // lent, to be freed when torn down
	events map[hv.VPIndex]int

	rx *ring.Reader
	tx *ring.Writer
}

func newChannel(g *Guest, o proto.OfferChannel) *Channel {
	return &Channel{Offer: o, g: g, rescinded: make(chan struct{}), wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
		pages: map[proto.GPADLID][]uint64{}, events: map[hv.VPIndex]int{}}
}

func (c *Channel) isRescinded() bool {
	select {
	case <-c.rescinded:
		return true
	default:
		return false
	}
}

// Rescinded is closed when the host takes the channel back.
func (c *Channel) Rescinded() <-chan struct{} { return c.rescinded }

// Events returns how many interrupts of the channel the VP took.
func (c *Channel) Events(vp hv.VPIndex) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events[vp]
}

// event is the channel callback.
func (c *Channel) event(vp hv.VPIndex) {
	c.mu.Lock()
	c.events[vp]++
	c.mu.Unlock()
	for _, w := range [...]chan struct{}{c.wake, c.room} {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// onRescind is vmbus_onoffer_rescind: a channel that is open is closed, no
// GPADL is torn down, and the relid is given back.
func (c *Channel) onRescind() {
	ctx := context.Background()
	c.mu.Lock()
	open := c.open
	c.open = false
	c.mu.Unlock()
	if open {
		c.g.Post(ctx, proto.Encode(proto.CloseChannel{RelID: c.Offer.RelID}))
	}
	// The channel is off the guest's lists before the host hears of it, or the
	// next one like it would pass for a duplicate (hv_process_channel_removal).
	c.g.mu.Lock()
	if c.g.channels[c.Offer.RelID] == c {
		delete(c.g.channels, c.Offer.RelID)
		delete(c.g.devices, identify(&c.Offer))
	}
	close(c.g.changed)
	c.g.changed = make(chan struct{})
	c.g.mu.Unlock()
	c.g.Post(ctx, proto.Encode(proto.RelIDReleased{RelID: c.Offer.RelID}))
}

// dropPages forgets the pages lent to the host; it has given them back.
func (c *Channel) dropPages() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, pfns := range c.pages {
		c.g.pool.put(pfns)
		delete(c.pages, id)
	}
	c.open = false
}

// CreateGPADL lends ranges of pages to the host (vmbus_establish_gpadl).
func (c *Channel) CreateGPADL(ctx context.Context, ranges ...guest.PageRange) (proto.GPADLID, error) {
	c.g.mu.Lock()
	id := c.g.nextGPADL
	c.g.nextGPADL++
	c.g.mu.Unlock()
	m, err := c.g.ask(ctx, createdKey{c.Offer.RelID, id}, c.rescinded, proto.EncodeGPADL(c.Offer.RelID, id, ranges...)...)
	if err != nil {
		return 0, err
	}
	if st := m.(*proto.GPADLCreated).Status; st != 0 {
		return 0, StatusError{proto.MsgGPADLCreated, st}
	}
	return id, nil
}

// NewBuffer lends n fresh pages to the host, in one range.
func (c *Channel) NewBuffer(ctx context.Context, n int) (proto.GPADLID, []uint64, error) {
	pfns := c.g.Alloc(n)
	id, err := c.CreateGPADL(ctx, guest.PageRange{ByteCount: uint32(n) * guest.PageSize, PFNs: pfns})
	if err != nil {
		c.g.Free(pfns)
		return 0, nil, err
	}
	c.mu.Lock()
	c.pages[id] = pfns
	c.mu.Unlock()
	return id, pfns, nil
}

// Teardown takes a GPADL back and waits until the host does not use it any
// more (vmbus_teardown_gpadl). For a rescinded channel Linux does not ask.
func (c *Channel) Teardown(ctx context.Context, id proto.GPADLID) error {
	if c.isRescinded() {
		return ErrRescinded
	}
	_, err := c.g.ask(ctx, tornKey{id}, c.rescinded, proto.Encode(proto.GPADLTeardown{RelID: c.Offer.RelID, GPADL: id}))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.g.Free(c.pages[id])
	delete(c.pages, id)
	return nil
}

// OpenOptions is how to open a channel. The zero value is two rings of 4 pages
// with their headers and interrupts on the guest's VP.
type OpenOptions struct {
	Out, In   int // pages per ring with the header page; 0 means 4
	TargetVP  *uint32
	UserData  [proto.UserDataSize]byte
	MaxPacket int // largest packet of the host; 0 means ring.DefaultMaxPacket
}

// Open opens the channel (__vmbus_open): ring GPADL first, headers then.
func (c *Channel) Open(ctx context.Context, o OpenOptions) error {
	if o.Out == 0 {
		o.Out = 4
	}
	if o.In == 0 {
		o.In = 4
	}
	id, pfns, err := c.NewBuffer(ctx, o.Out+o.In)
	if err != nil {
		return err
	}
	for _, half := range [][]uint64{pfns[:o.Out], pfns[o.Out:]} {
		if err := ring.Format(c.g.Memory, half); err != nil {
			return err
		}
	}
	signal := func() { c.g.Machine.Signal(hv.ConnectionID(c.Offer.ConnectionID)) }
	tx, err := ring.NewWriter(c.g.Memory, pfns[:o.Out], signal)
	if err != nil {
		return err
	}
	rx, err := ring.NewReader(c.g.Memory, pfns[o.Out:], o.MaxPacket, signal)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.tx, c.rx, c.ringID = tx, rx, id
	c.mu.Unlock()
	m := proto.OpenChannel{RelID: c.Offer.RelID, OpenID: uint32(c.Offer.RelID), RingGPADL: id,
		TargetVP: uint32(c.g.VP), DownstreamPage: uint32(o.Out), UserData: o.UserData}
	if o.TargetVP != nil {
		m.TargetVP = *o.TargetVP
	}
	r, err := c.g.ask(ctx, openKey{c.Offer.RelID}, c.rescinded, proto.Encode(m))
	if err != nil {
		return err
	}
	if st := r.(*proto.OpenChannelResult).Status; st != 0 {
		if err := c.Teardown(ctx, id); err != nil {
			return err
		}
		return StatusError{proto.MsgOpenChannelResult, st}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isRescinded() {
		return ErrRescinded
	}
	c.open = true
	return nil
}

// Close closes the channel and takes the rings back.
func (c *Channel) Close(ctx context.Context) error {
	c.mu.Lock()
	open := c.open
	c.open = false
	c.mu.Unlock()
	if c.isRescinded() || !open {
		return ErrRescinded
	}
	if err := c.g.Post(ctx, proto.Encode(proto.CloseChannel{RelID: c.Offer.RelID})); err != nil {
		return err
	}
	return c.Teardown(ctx, c.ringID)
}

// Modify moves the channel's interrupts to another VP, and waits for the
// answer that there is from 5.3 on.
func (c *Channel) Modify(ctx context.Context, vp uint32) error {
	b := proto.Encode(proto.ModifyChannel{RelID: c.Offer.RelID, TargetVP: vp})
	if c.g.Version() < proto.Version5_3 {
		return c.g.Post(ctx, b)
	}
	m, err := c.g.ask(ctx, modifyKey{c.Offer.RelID}, c.rescinded, b)
	if err != nil {
		return err
	}
	if st := m.(*proto.ModifyChannelResult).Status; st != 0 {
		return StatusError{proto.MsgModifyChannelResult, st}
	}
	return nil
}

// Reader and Writer are the guest's ends of the rings, for tests that break
// them.
func (c *Channel) Reader() *ring.Reader { return c.rx }

// Writer: see Reader.
func (c *Channel) Writer() *ring.Writer { return c.tx }

// Rings returns the pages of both rings and at which the second one begins.
func (c *Channel) Rings() (pfns []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages[c.ringID]
}

// TryRecv takes a packet if there is one.
func (c *Channel) TryRecv(p *ring.Packet) (bool, error) { return c.rx.Next(p) }

// Recv waits for a packet, ctx or a rescind.
func (c *Channel) Recv(ctx context.Context, p *ring.Packet) error {
	for {
		if ok, err := c.rx.Next(p); ok || err != nil {
			return err
		}
		select {
		case <-c.wake:
		case <-c.rescinded:
			return ErrRescinded
		case <-ctx.Done():
			return fmt.Errorf("receiving on channel %d: %w", c.Offer.RelID, ctx.Err())
		}
	}
}

// Send sends a packet, waiting for room, ctx or a rescind.
func (c *Channel) Send(ctx context.Context, p *ring.Packet) error {
	for {
		err := c.tx.Put(p)
		if err == nil {
			return c.tx.Publish()
		}
		if err != ring.ErrFull {
			return err
		}
		room, err := c.tx.Await(p)
		if err != nil {
			return err
		}
		if room {
			continue
		}
		select {
		case <-c.room:
		case <-c.rescinded:
			return ErrRescinded
		case <-ctx.Done():
			return fmt.Errorf("sending on channel %d: %w", c.Offer.RelID, ctx.Err())
		}
	}
}

// Request sends an in-band packet that wants a completion, and waits for it.
func (c *Channel) Request(ctx context.Context, id uint64, payload []byte) ([]byte, error) {
	err := c.Send(ctx, &ring.Packet{Type: proto.PacketInBand, Flags: proto.CompletionRequested, TransactionID: id, Payload: payload})
	if err != nil {
		return nil, err
	}
	var p ring.Packet
	if err := c.Recv(ctx, &p); err != nil {
		return nil, err
	}
	if p.Type != proto.PacketCompletion || p.TransactionID != id {
		return nil, fmt.Errorf("%v packet of transaction %#x, want the completion of %#x", p.Type, p.TransactionID, id)
	}
	return append([]byte(nil), p.Payload...), nil
}
