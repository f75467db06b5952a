package vmbus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
)

// A Channel is a channel that the guest has open, as its device sees it. Its
// methods are for the goroutines of the device while Serve runs: one at a time
// may receive, and one at a time may send.
type Channel struct {
	srv      *Server
	rec      *channel // the server's goroutine's
	offer    Offer
	relid    proto.RelID
	version  proto.Version
	userData [proto.UserDataSize]byte

	rx                 *ring.Reader
	tx                 *ring.Writer
	masked             bool // signals of the guest are masked
	readable, writable chan struct{}
	target             atomic.Uint32 // VP of signals, or proto.NoInterrupts

	// The server's goroutine's.
	ctx              context.Context
	cancel           context.CancelFunc
	started, stopped bool
	held             map[*GPADL]bool

	unstickMu sync.Mutex
	unstick   *time.Timer // nil when the channel has ended
	tries     int
}

func newChannel(s *Server, c *channel, m proto.OpenChannel) *Channel {
	ch := &Channel{
		srv: s, rec: c, offer: c.offer, relid: c.relid, version: s.conn.version, userData: m.UserData,
		masked:   true, // as far as we know: the first look at an empty ring unmasks
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), held: map[*GPADL]bool{},
	}
	ch.target.Store(m.TargetVP)
	ch.ctx, ch.cancel = context.WithCancel(context.Background())
	return ch
}

// connect finds the rings, as the guest has laid them out by now, and lets the
// guest signal: it may do so before it has the answer to its OPENCHANNEL.
func (ch *Channel) connect(fromGuest, toGuest []uint64) (err error) {
	s := ch.srv
	if ch.rx, err = ring.NewReader(s.cfg.Memory, fromGuest, ch.offer.MaxPacket, ch.signal); err != nil {
		return fmt.Errorf("guest to host: %w", err)
	}
	if ch.tx, err = ring.NewWriter(s.cfg.Memory, toGuest, ch.signal); err != nil {
		return fmt.Errorf("host to guest: %w", err)
	}
	if err := s.cfg.Host.ConnectEvent(eventConnection(uint32(ch.relid)), 1, signalPort{ch}); err != nil {
		return fmt.Errorf("signals: %w", err)
	}
	return nil
}

// start runs the device.
func (ch *Channel) start() {
	ch.started = true
	ch.unstickMu.Lock()
	ch.unstick = time.AfterFunc(unstickAfter[0], ch.tryUnstick)
	ch.unstickMu.Unlock()
	go func() {
		err := ch.rec.dev.Serve(ch.ctx, ch)
		// The server's goroutine does not end before it has heard of this.
		ch.srv.ops <- func() { ch.srv.ended(ch, err) }
	}()
}

// tryUnstick signals again if the guest has left packets unread, see
// unstickAfter.
func (ch *Channel) tryUnstick() {
	ch.unstickMu.Lock()
	defer ch.unstickMu.Unlock()
	if ch.unstick == nil {
		return
	}
	if ch.tx.Unread() {
		ch.signal()
	}
	if ch.tries++; ch.tries < len(unstickAfter) {
		ch.unstick.Reset(unstickAfter[ch.tries] - unstickAfter[ch.tries-1])
	}
}

// end stops what still runs beside Serve. Afterwards nothing of the channel
// touches the rings.
func (ch *Channel) end() {
	ch.cancel()
	ch.unstickMu.Lock()
	defer ch.unstickMu.Unlock()
	if ch.unstick != nil {
		ch.unstick.Stop()
		ch.unstick = nil
	}
}

// signal sets the channel's event flag at the guest. Failure means that the
// guest has switched its SynIC off; it has nothing to hear then.
func (ch *Channel) signal() {
	if vp := ch.target.Load(); vp != proto.NoInterrupts {
		ch.srv.cfg.Host.SignalEvent(hv.VPIndex(vp), SINT, uint16(ch.relid))
	}
}

// signalPort takes the guest's signals: there is something to read, or room to
// write, or nothing at all.
type signalPort struct{ ch *Channel }

func (p signalPort) HandleEvent(uint16) {
	for _, c := range [...]chan struct{}{p.ch.readable, p.ch.writable} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// hold and drop count the channel's use of a GPADL. They run on the server's
// goroutine.
func (ch *Channel) hold(g *gpadl) *GPADL {
	h := &GPADL{ch, g}
	ch.held[h] = true
	g.refs++
	return h
}

func (ch *Channel) drop(h *GPADL) {
	delete(ch.held, h)
	h.g.refs--
	ch.srv.gpadlDrop(h.g)
}

// Offer returns the offer that the guest opened.
func (ch *Channel) Offer() Offer { return ch.offer }

// RelID returns the channel's number in this connection.
func (ch *Channel) RelID() proto.RelID { return ch.relid }

// Version returns the protocol version of the connection.
func (ch *Channel) Version() proto.Version { return ch.version }

// Memory returns the guest's RAM.
func (ch *Channel) Memory() *guest.Memory { return ch.srv.cfg.Memory }

// UserData returns the device's part of OPENCHANNEL.
func (ch *Channel) UserData() [proto.UserDataSize]byte { return ch.userData }

// TargetVP returns the VP that the channel's interrupts go to, and false if
// the guest wants none. The guest may change it at any time.
func (ch *Channel) TargetVP() (hv.VPIndex, bool) {
	vp := ch.target.Load()
	return hv.VPIndex(vp), vp != proto.NoInterrupts
}

// Reader and Writer are the ends of the two rings. Recv and Send use them; a
// device that batches may use them directly, with Readable and Writable.
func (ch *Channel) Reader() *ring.Reader { return ch.rx }

// Writer: see Reader.
func (ch *Channel) Writer() *ring.Writer { return ch.tx }

// Readable has a value after the guest signalled; TryRecv may find a packet
// then. One goroutine may wait for it.
func (ch *Channel) Readable() <-chan struct{} { return ch.readable }

// Writable has a value after the guest signalled; TrySend may find room then.
// One goroutine may wait for it.
func (ch *Channel) Writable() <-chan struct{} { return ch.writable }

// TryRecv takes the next packet of the guest and reports whether there was
// one. After false, Readable has a value when there is one again. The packet
// is a private copy and valid until the next call. An error (ring.ErrCorrupt)
// is final.
func (ch *Channel) TryRecv(p *ring.Packet) (bool, error) {
	for {
		ok, err := ch.rx.Next(p)
		if ok && !ch.masked {
			// While there is work the guest need not signal more.
			ch.rx.Mask()
			ch.masked = true
		}
		if ok || err != nil || !ch.masked {
			return ok, err
		}
		ch.masked = false
		if more, err := ch.rx.Unmask(); !more {
			return false, err
		}
	}
}

// Recv is TryRecv that waits for a packet, or for ctx.
func (ch *Channel) Recv(ctx context.Context, p *ring.Packet) error {
	for {
		// A guest that never lets the ring run empty must not keep the device
		// from ending.
		if err := ctx.Err(); err != nil {
			return err
		}
		if ok, err := ch.TryRecv(p); ok || err != nil {
			return err
		}
		select {
		case <-ch.readable:
		case <-ctx.Done():
		}
	}
}

// TrySend sends a packet if there is room, and reports whether it did. After
// false, Writable has a value when p would fit. Errors are ring.ErrCorrupt,
// which is final, and ring.ErrTooBig.
func (ch *Channel) TrySend(p *ring.Packet) (bool, error) {
	err := ch.tx.Put(p)
	if err == ring.ErrFull {
		if err := ch.tx.Publish(); err != nil {
			return false, err
		}
		room, err := ch.tx.Await(p)
		if !room {
			return false, err
		}
		err = ch.tx.Put(p)
		if err != nil {
			return false, err
		}
		return true, ch.tx.Publish()
	}
	if err != nil {
		return false, err
	}
	return true, ch.tx.Publish()
}

// Send is TrySend that waits for room, or for ctx.
func (ch *Channel) Send(ctx context.Context, p *ring.Packet) error {
	for {
		if err := ctx.Err(); err != nil {
			ch.tx.Cancel()
			return err
		}
		if ok, err := ch.TrySend(p); ok || err != nil {
			return err
		}
		select {
		case <-ch.writable:
		case <-ctx.Done():
		}
	}
}

// SendCompletion completes the guest's packet with the given transaction id.
func (ch *Channel) SendCompletion(ctx context.Context, id uint64, payload []byte) error {
	return ch.Send(ctx, &ring.Packet{Type: proto.PacketCompletion, TransactionID: id, Payload: payload})
}

// GPADL finds guest memory that the guest lent to this channel, by the number
// that the device's protocol carries. ErrNoGPADL if there is none, or the
// guest already wants it back. What is not released is when Serve returns.
func (ch *Channel) GPADL(id proto.GPADLID) (*GPADL, error) {
	var h *GPADL
	err := ErrClosed
	ch.srv.do(func() {
		err = ErrNoGPADL
		if g := ch.srv.gpadls[gpadlKey{ch.relid, id}]; g != nil && !g.torn && ch.rec.run == ch {
			h, err = ch.hold(g), nil
		}
	})
	return h, err
}

// OfferSub offers a sub-channel of this channel, which must be a primary one.
// The guest opens it like a channel of its own; serve runs it. It lasts until
// the primary channel is closed.
func (ch *Channel) OfferSub(index uint16, serve func(ctx context.Context, ch *Channel) error) error {
	if index == 0 || ch.offer.SubChannel != 0 {
		panic("vmbus: a sub-channel of a sub-channel, or without an index")
	}
	o := ch.offer
	o.SubChannel = index
	err := ErrClosed
	ch.srv.do(func() {
		if ch.rec.run != ch || ch.stopped {
			return
		}
		_, err = ch.srv.add(&subDevice{o, serve}, o, ch.rec)
	})
	return err
}
