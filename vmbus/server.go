package vmbus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// A Config describes a server.
type Config struct {
	Host   Host
	Memory *guest.Memory
	VPs    int // virtual processors of the guest

	// MaxVersion is the newest protocol to agree to; 0 means 5.3. Below 5.0
	// connection 4 does not exist, as on hosts of that age.
	MaxVersion proto.Version

	// Logf takes one line about a guest's or a device's mistake. The rate is
	// limited here. It must not call the server. May be nil.
	Logf func(format string, args ...any)
}

// A Server is the VMBus of one guest. Its methods may be called from any
// goroutine but that of a Device.Serve that they would wait for.
type Server struct {
	cfg   Config
	log   siteLog
	inbox chan hv.Message // what the guest posted
	ops   chan func()     // what the host and devices want, to run on the server's goroutine
	room  chan struct{}   // the guest took a message
	quit  chan struct{}   // Close was called
	once  sync.Once       // closes quit
	done  chan struct{}   // the goroutine has ended

	// All below belongs to the server's goroutine.

	port     MessageSender
	out      []outgoing
	conn     connection
	channels [MaxChannels + 1]*channel // by relid; 0 is never used
	lastID   proto.RelID               // last relid given out
	live     int                       // Serve calls running
	drain    *drain                    // not nil while old channels end
	closed   bool
	final    Status // set at the end

	gpadls  map[gpadlKey]*gpadl
	partial map[proto.GPADLID]*gpadl // incomplete ones; bodies name no channel
	pages   uint64                   // in gpadls and partial
}

// NewServer starts a server. Close ends it.
func NewServer(cfg Config) (*Server, error) {
	if cfg.MaxVersion == proto.VersionInvalid {
		cfg.MaxVersion = proto.Version5_3
	}
	switch {
	case cfg.Host == nil || cfg.Memory == nil:
		return nil, errors.New("vmbus: no host or no memory")
	case cfg.VPs < 1:
		return nil, fmt.Errorf("vmbus: %d VPs: want at least 1", cfg.VPs)
	case !supported(cfg.MaxVersion, proto.Version5_3):
		return nil, fmt.Errorf("vmbus: no protocol version %v: have %v", cfg.MaxVersion, proto.Versions)
	}
	s := &Server{
		cfg:     cfg,
		log:     siteLog{logf: cfg.Logf, sites: map[string]*logSite{}},
		inbox:   make(chan hv.Message, inboxSize),
		ops:     make(chan func()),
		room:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
		gpadls:  map[gpadlKey]*gpadl{},
		partial: map[proto.GPADLID]*gpadl{},
	}
	s.reopenPort()
	for i, id := range s.messageConnections() {
		if err := cfg.Host.ConnectMessage(id, inboxPort{s}); err != nil {
			for _, id := range s.messageConnections()[:i] {
				cfg.Host.Disconnect(id)
			}
			s.port.Close()
			return nil, fmt.Errorf("vmbus: message connection %d: %w", id, err)
		}
	}
	go s.run()
	return s, nil
}

// messageConnections returns the connections that this version of host has.
func (s *Server) messageConnections() []hv.ConnectionID {
	if s.cfg.MaxVersion < proto.Version5_0 {
		return []hv.ConnectionID{MessageConnection}
	}
	return []hv.ConnectionID{MessageConnection, MessageConnection4}
}

// inboxPort queues the guest's messages.
type inboxPort struct{ s *Server }

func (p inboxPort) HandleMessage(m hv.Message) hv.Status {
	select {
	case p.s.inbox <- m:
		return hv.StatusSuccess
	default:
		return hv.StatusInsufficientBuffers
	}
}

// run is the server's goroutine.
func (s *Server) run() {
	quit := s.quit
	for !s.closed || s.live > 0 {
		// Reading on while answers are backed up, or while the old channels
		// still drain, would let the guest pile work up.
		inbox := s.inbox
		if len(s.out) > 0 || s.drain != nil || s.closed {
			inbox = nil
		}
		select {
		case m := <-inbox:
			s.handle(&m)
		case op := <-s.ops:
			op()
		case <-s.room:
		case <-quit:
			quit = nil
			s.closed = true
			s.teardown(drain{})
		}
		s.flush()
	}
	s.port.Close()
	s.final = s.status()
	close(s.done)
}

// do runs f on the server's goroutine and waits for it; false: the server is
// closed and f did not run.
func (s *Server) do(f func()) bool {
	ran := make(chan struct{})
	select {
	case s.ops <- func() { f(); close(ran) }:
		<-ran
		return true
	case <-s.done:
		return false
	}
}

// Offer adds a device. If the guest has asked for offers already it hears of
// this one at once, unless it still knows a rescinded channel of the same type
// and instance; then it does as soon as it has let go of that.
func (s *Server) Offer(dev Device) error {
	o := dev.Offer()
	if o.SubChannel != 0 {
		return fmt.Errorf("vmbus: %s: sub-channels are offered by Channel.OfferSub", o.Name)
	}
	err := ErrClosed
	s.do(func() {
		if !s.closed {
			_, err = s.add(dev, o, nil)
		}
	})
	if err != nil {
		return fmt.Errorf("vmbus: offer %s: %w", o.Name, err)
	}
	return nil
}

// Remove takes a device away from the guest and returns when its Serve has
// returned, if it ran. The guest may take its time to let the channel go.
// Removing a device twice is ErrNotOffer.
func (s *Server) Remove(dev Device) error {
	err := ErrClosed
	gone := make(chan struct{})
	s.do(func() {
		err = ErrNotOffer
		for _, c := range s.channels {
			if c != nil && c.dev == dev && !c.rescinded {
				err = nil
				c.whenIdle(func() { close(gone) })
				s.rescind(c)
				break
			}
		}
	})
	if err != nil {
		return fmt.Errorf("vmbus: remove: %w", err)
	}
	<-gone
	return nil
}

// Reset puts the bus into the state of power-on: channels closed, the guest's
// memory let go, messages in both directions dropped. It returns when every
// Serve has returned. Devices stay offered. The machine calls it when its VPs
// stand still: a guest that is reset tells nobody.
func (s *Server) Reset() {
	done := make(chan struct{})
	s.do(func() {
		for len(s.inbox) > 0 {
			<-s.inbox
		}
		s.reopenPort()
		s.teardown(drain{reset: true, done: []func(){func() { close(done) }}})
	})
	select {
	case <-done:
	case <-s.done:
	}
}

// Close ends the server: connections are gone, every Serve has returned and
// nothing touches the guest's memory when it returns.
func (s *Server) Close() {
	s.once.Do(func() {
		for _, id := range s.messageConnections() {
			s.cfg.Host.Disconnect(id)
		}
		close(s.quit)
	})
	<-s.done
}
