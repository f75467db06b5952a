package vmbustest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// firstGPADL is the first handle that Linux uses.
const firstGPADL = 0xE1E10

// Errors of a guest.
var (
	ErrNoVersion = errors.New("unable to connect to host: no protocol version in common")
	ErrRescinded = errors.New("channel was rescinded")
)

// A StatusError is a failure that the host answered.
type StatusError struct {
	Type   proto.MessageType
	Status uint32
}

func (e StatusError) Error() string { return fmt.Sprintf("%v: status %#x", e.Type, e.Status) }

// A Guest is the kernel of a guest. Its methods may be called from any
// goroutine.
type Guest struct {
	Machine Machine
	Memory  *guest.Memory
	VP      hv.VPIndex    // target of messages
	Max     proto.Version // first version to ask for; 0 means 5.3

	pool *pool
	wg   sync.WaitGroup // rescinds in progress

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when something below changes
	version   proto.Version
	conn      hv.ConnectionID // for messages
	channels  map[proto.RelID]*Channel
	devices   map[identity]bool // of channels
	all       bool              // ALLOFFERS_DELIVERED came
	waiting   map[any]chan proto.Message
	nextGPADL proto.GPADLID
	stray     []proto.Message
	hung      bool // handles rescinds no more
}

// NewGuest boots a guest on m. It must be closed.
func NewGuest(m Machine, mem *guest.Memory) *Guest {
	g := &Guest{Machine: m, Memory: mem, pool: newPool(mem)}
	g.forget()
	m.Attach(g.message, g.event)
	return g
}

// forget is what a kernel's memory of VMBus is at boot.
func (g *Guest) forget() {
	g.changed = make(chan struct{})
	g.version, g.conn = proto.VersionInvalid, vmbus.MessageConnection
	g.channels, g.devices = map[proto.RelID]*Channel{}, map[identity]bool{}
	g.all = false
	g.waiting = map[any]chan proto.Message{}
	g.nextGPADL = firstGPADL
}

// Kexec makes the guest a new kernel that knows nothing of the old one. The
// old one's pages are not used again.
func (g *Guest) Kexec() {
	g.mu.Lock()
	close(g.changed)
	g.forget()
	g.mu.Unlock()
}

// Close ends the guest, but not its machine. The machine delivers no more
// messages to it, or they are ignored.
func (g *Guest) Close() {
	g.mu.Lock()
	g.hung = true
	g.mu.Unlock()
	g.wg.Wait()
}

// Stray returns the messages that the guest did not expect: answers nobody
// waited for, messages of unknown channels.
func (g *Guest) Stray() []proto.Message {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]proto.Message(nil), g.stray...)
}

// ClearStray forgets them.
func (g *Guest) ClearStray() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stray = nil
}

// Version returns the agreed version, VersionInvalid without a connection.
func (g *Guest) Version() proto.Version {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.version
}

// FreePages returns how many pages of RAM the guest has left.
func (g *Guest) FreePages() int { return g.pool.left() }

// Alloc takes n pages of RAM, none next to another. Free gives them back.
func (g *Guest) Alloc(n int) []uint64 { return g.pool.take(n) }

// Free: see Alloc.
func (g *Guest) Free(pfns []uint64) { g.pool.put(pfns) }

// PostRaw posts any bytes as a channel message, once.
func (g *Guest) PostRaw(id hv.ConnectionID, b []byte) hv.Status {
	return g.Machine.Post(id, hv.NewMessage(hv.MessageVMBus, b))
}

// Post posts a message, again and again while the host lacks buffers, as Linux
// does (vmbus_post_msg).
func (g *Guest) Post(ctx context.Context, b []byte) error {
	g.mu.Lock()
	id := g.conn
	g.mu.Unlock()
	return g.post(ctx, id, b)
}

func (g *Guest) post(ctx context.Context, id hv.ConnectionID, b []byte) error {
	delay := time.Microsecond
	for {
		switch st := g.PostRaw(id, b); st {
		case hv.StatusSuccess:
			return nil
		case hv.StatusInsufficientBuffers:
		default:
			return st
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
		delay = min(2*delay, 2*time.Second)
	}
}

// expect registers a wait for the answer with the given key, before the
// question is posted.
func (g *Guest) expect(key any) chan proto.Message {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := make(chan proto.Message, 1)
	g.waiting[key] = c
	return c
}

// ask posts a question and waits for its answer, or until stop is closed.
func (g *Guest) ask(ctx context.Context, key any, stop <-chan struct{}, msgs ...[]byte) (proto.Message, error) {
	c := g.expect(key)
	for _, b := range msgs {
		if err := g.Post(ctx, b); err != nil {
			return nil, err
		}
	}
	select {
	case m := <-c:
		return m, nil
	case <-stop:
		return nil, ErrRescinded
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer to %v: %w", key, ctx.Err())
	}
}

// answer hands a message to who waits for it.
func (g *Guest) answer(key any, m proto.Message) {
	if c := g.waiting[key]; c != nil {
		delete(g.waiting, key)
		c <- m
		return
	}
	g.stray = append(g.stray, m)
}

// Keys of answers.
type (
	versionKey struct{}
	unloadKey  struct{}
	openKey    struct{ relid proto.RelID }
	createdKey struct {
		relid proto.RelID
		gpadl proto.GPADLID
	}
	tornKey   struct{ gpadl proto.GPADLID }
	modifyKey struct{ relid proto.RelID }
	tlKey     struct{ endpoint, service proto.GUID }
)

// message is vmbus_on_msg_dpc: it runs for one message after the other.
func (g *Guest) message(vp hv.VPIndex, m hv.Message) {
	t, ok := proto.TypeOf(m.Bytes())
	if !ok || m.Type != hv.MessageVMBus {
		panic(fmt.Sprintf("vmbustest: the host sent a message of type %#x, %d bytes", uint32(m.Type), m.Size))
	}
	msg := map[proto.MessageType]proto.Message{
		proto.MsgVersionResponse: &proto.VersionResponse{}, proto.MsgOfferChannel: &proto.OfferChannel{},
		proto.MsgRescindChannelOffer: &proto.RescindChannelOffer{}, proto.MsgAllOffersDelivered: &proto.AllOffersDelivered{},
		proto.MsgOpenChannelResult: &proto.OpenChannelResult{}, proto.MsgGPADLCreated: &proto.GPADLCreated{},
		proto.MsgGPADLTorndown: &proto.GPADLTorndown{}, proto.MsgUnloadResponse: &proto.UnloadResponse{},
		proto.MsgModifyChannelResult: &proto.ModifyChannelResult{}, proto.MsgTLConnectResult: &proto.TLConnectResult{},
	}[t]
	if msg == nil {
		panic(fmt.Sprintf("vmbustest: the host sent %v", t))
	}
	if rest, err := proto.Decode(m.Bytes(), msg); err != nil || len(rest) > 0 {
		panic(fmt.Sprintf("vmbustest: the host sent %v of %d bytes: %v", t, m.Size, err))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch m := msg.(type) {
	case *proto.VersionResponse:
		g.answer(versionKey{}, m)
	case *proto.UnloadResponse:
		g.answer(unloadKey{}, m)
	case *proto.OpenChannelResult:
		g.answer(openKey{m.RelID}, m)
	case *proto.GPADLCreated:
		g.answer(createdKey{m.RelID, m.GPADL}, m)
	case *proto.GPADLTorndown:
		g.answer(tornKey{m.GPADL}, m)
	case *proto.ModifyChannelResult:
		g.answer(modifyKey{m.RelID}, m)
	case *proto.TLConnectResult:
		g.answer(tlKey{m.Endpoint, m.Service}, m)
	case *proto.AllOffersDelivered:
		g.all = true
	case *proto.OfferChannel:
		g.offer(m)
	case *proto.RescindChannelOffer:
		c := g.channels[m.RelID]
		if c == nil || c.isRescinded() {
			g.stray = append(g.stray, m)
			break
		}
		close(c.rescinded)
		if !g.hung {
			g.wg.Go(c.onRescind)
		}
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// An identity is what must differ between channels.
type identity struct {
	typ, instance proto.GUID
	sub           uint16
}

func identify(m *proto.OfferChannel) identity {
	return identity{m.InterfaceType, m.Instance, m.SubChannel}
}

// offer is vmbus_onoffer. Linux warns of a second channel that looks like one
// it has, and never uses it.
func (g *Guest) offer(m *proto.OfferChannel) {
	if m.RelID == 0 || m.RelID > vmbus.MaxChannels || g.channels[m.RelID] != nil || m.Dedicated != proto.OfferDedicated {
		g.stray = append(g.stray, m)
		return
	}
	if g.devices[identify(m)] {
		g.stray = append(g.stray, m)
		return
	}
	g.devices[identify(m)] = true
	g.channels[m.RelID] = newChannel(g, *m)
}

// event is vmbus_chan_sched for one flag.
func (g *Guest) event(vp hv.VPIndex, flag uint16) {
	g.mu.Lock()
	c := g.channels[proto.RelID(flag)]
	g.mu.Unlock()
	if c != nil {
		c.event(vp)
	}
}

// Connect agrees on a version: from Max downwards, on connection 4 from 5.0 on.
func (g *Guest) Connect(ctx context.Context) error {
	max := g.Max
	if max == proto.VersionInvalid {
		max = proto.Version5_3
	}
	for i := len(proto.Versions) - 1; i >= 0; i-- {
		v := proto.Versions[i]
		if v > max {
			continue
		}
		m := proto.InitiateContact{Version: v, TargetVP: uint32(g.VP), Interrupt: 1 << 12, Monitor1: 2 << 12, Monitor2: 3 << 12}
		id := vmbus.MessageConnection
		if v >= proto.Version5_0 {
			id, m.Interrupt = vmbus.MessageConnection4, proto.ContactSINT(vmbus.SINT, 0)
		}
		c := g.expect(versionKey{})
		if err := g.post(ctx, id, proto.Encode(m)); err == hv.StatusInvalidConnectionID {
			continue
		} else if err != nil {
			return err
		}
		select {
		case m := <-c:
			r := m.(*proto.VersionResponse)
			if r.Supported == 0 {
				continue
			}
			g.mu.Lock()
			g.version = v
			if v >= proto.Version5_0 {
				g.conn = hv.ConnectionID(r.Selected)
			}
			g.mu.Unlock()
			return nil
		case <-ctx.Done():
			return fmt.Errorf("no answer to version %v: %w", v, ctx.Err())
		}
	}
	return ErrNoVersion
}

// wait calls f under the lock until it says true, whenever something changed.
func (g *Guest) wait(ctx context.Context, what string, f func() bool) error {
	for {
		g.mu.Lock()
		ok, changed := f(), g.changed
		g.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

// RequestOffers asks for the offers and waits until all are there.
func (g *Guest) RequestOffers(ctx context.Context) error {
	if err := g.Post(ctx, proto.Encode(proto.RequestOffers{})); err != nil {
		return err
	}
	return g.wait(ctx, "ALLOFFERS_DELIVERED", func() bool { return g.all })
}

// Boot is Connect and RequestOffers.
func (g *Guest) Boot(ctx context.Context) error {
	if err := g.Connect(ctx); err != nil {
		return err
	}
	return g.RequestOffers(ctx)
}

// Channels returns the channels the guest knows, rescinded ones included until
// it has let go of them.
func (g *Guest) Channels() map[proto.RelID]*Channel {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := map[proto.RelID]*Channel{}
	for id, c := range g.channels {
		m[id] = c
	}
	return m
}

// Find waits for a channel that is offered: type, instance (the zero GUID
// matches any) and sub-channel index.
func (g *Guest) Find(ctx context.Context, typ, instance proto.GUID, sub uint16) (*Channel, error) {
	var found *Channel
	err := g.wait(ctx, "an offer of "+typ.String(), func() bool {
		for _, c := range g.channels {
			if c.Offer.InterfaceType == typ && (instance == proto.GUID{} || c.Offer.Instance == instance) &&
				c.Offer.SubChannel == sub && !c.isRescinded() {
				found = c
			}
		}
		return found != nil
	})
	return found, err
}

// Unload ends the connection and waits until the host has let go of
// everything. Pages that the host held are the guest's again.
func (g *Guest) Unload(ctx context.Context) error {
	if _, err := g.ask(ctx, unloadKey{}, nil, proto.Encode(proto.Unload{})); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.channels {
		c.dropPages()
	}
	close(g.changed)
	g.forget()
	return nil
}

// TLConnect asks for an hv_sock connection and waits for the refusal.
func (g *Guest) TLConnect(ctx context.Context, endpoint, service proto.GUID) (status uint32, err error) {
	m, err := g.ask(ctx, tlKey{endpoint, service}, nil, proto.Encode(proto.TLConnectRequest{Endpoint: endpoint, Service: service}))
	if err != nil {
		return 0, err
	}
	return m.(*proto.TLConnectResult).Status, nil
}
