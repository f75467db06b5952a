package vmbus_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// A script is a guest, and a host, that does what the fuzzer says: raw
// messages, and well-formed ones with few different numbers so that they meet
// each other, between removals, resets and stalls.
type script struct {
	t    *testing.T
	in   []byte
	fake *vmbustest.Fake
	srv  *vmbus.Server
	mem  *guest.Memory
	devs [3]*device

	mu    sync.Mutex
	asked map[proto.MessageType]int // by type of the answer
	got   map[proto.MessageType]int
	bad   string
}

func (s *script) byte() byte {
	if len(s.in) == 0 {
		return 0
	}
	b := s.in[0]
	s.in = s.in[1:]
	return b
}

func (s *script) word() uint32 {
	return uint32(s.byte()) | uint32(s.byte())<<8 | uint32(s.byte())<<16 | uint32(s.byte())<<24
}

// record checks what the server says: known types, their exact sizes.
func (s *script) record(vp hv.VPIndex, m hv.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sizes := map[proto.MessageType]uint8{1: 196, 2: 12, 4: 8, 6: 20, 10: 20, 12: 12, 15: 16, 17: 8, 23: 44, 24: 16}
	t, _ := proto.TypeOf(m.Bytes())
	if m.Type != hv.MessageVMBus || m.Size != sizes[t] || vp >= envVPs {
		s.bad = fmt.Sprintf("message %v, SynIC type %d, %d bytes, VP %d", t, m.Type, m.Size, vp)
	}
	s.got[t]++
}

func (s *script) post(b []byte) {
	if s.fake.Post(1+3*hv.ConnectionID(s.byte()&1), hv.NewMessage(hv.MessageVMBus, b)) != hv.StatusSuccess {
		return // full: not asked
	}
	t, _ := proto.TypeOf(b)
	answers := map[proto.MessageType]proto.MessageType{
		proto.MsgOpenChannel: proto.MsgOpenChannelResult, proto.MsgGPADLHeader: proto.MsgGPADLCreated, proto.MsgGPADLTeardown: proto.MsgGPADLTorndown,
		proto.MsgInitiateContact: proto.MsgVersionResponse, proto.MsgUnload: proto.MsgUnloadResponse, proto.MsgTLConnectRequest: proto.MsgTLConnectResult,
		proto.MsgModifyChannel: proto.MsgModifyChannelResult, proto.MsgRequestOffers: proto.MsgAllOffersDelivered,
	}
	if a, ok := answers[t]; ok {
		s.mu.Lock()
		s.asked[a]++
		s.mu.Unlock()
	}
}

// settle waits until the server has nothing left to do.
func (s *script) settle() {
	for range 3 {
		s.srv.Status()
	}
}

func (s *script) step() {
	relid := func() proto.RelID { return proto.RelID(s.byte() % 6) }
	id := func() proto.GPADLID { return proto.GPADLID(s.byte() % 6) }
	switch op := s.byte(); op % 20 {
	case 0: // anything
		n := int(s.byte()) % 241
		b := make([]byte, n)
		for i := range b {
			if len(s.in) > 0 {
				b[i] = s.byte()
			}
		}
		s.post(b)
	case 1: // any type, few numbers
		b := make([]byte, 240)
		b[0] = s.byte() % 32
		for i := 8; i < 40; i += 4 {
			b[i] = s.byte() % 6
		}
		s.post(b)
	case 2, 3:
		v := proto.Versions[int(s.byte())%len(proto.Versions)]
		s.post(proto.Encode(proto.InitiateContact{Version: v, TargetVP: uint32(s.byte() % 5), Interrupt: 2}))
	case 4, 5:
		s.post(proto.Encode(proto.RequestOffers{}))
	case 6, 7: // a ring GPADL, whole
		pfns := []uint64{20, 21, 22, 23, 24, 25}[:2+s.byte()%5]
		if s.byte()&1 == 0 {
			ring.Format(s.mem, []uint64{20, 21})
			ring.Format(s.mem, []uint64{22, 23})
		}
		for _, m := range proto.EncodeGPADL(relid(), id(), guest.PageRange{ByteCount: uint32(len(pfns)) * guest.PageSize, PFNs: pfns}) {
			s.post(m)
		}
	case 8: // a GPADL that wants bodies
		b := proto.Encode(proto.GPADLHeader{RelID: relid(), GPADL: id(), RangeCount: uint16(s.byte() % 3)})
		b = binary.LittleEndian.AppendUint32(b, s.word()%20000)
		b = binary.LittleEndian.AppendUint32(b, s.word()%5000)
		s.post(b)
	case 9:
		b := proto.Encode(proto.GPADLBody{GPADL: id()})
		for range s.byte() % 29 {
			b = binary.LittleEndian.AppendUint64(b, uint64(s.byte()))
		}
		s.post(b)
	case 10:
		s.post(proto.Encode(proto.GPADLTeardown{RelID: relid(), GPADL: id()}))
	case 11, 12:
		s.post(proto.Encode(proto.OpenChannel{RelID: relid(), RingGPADL: id(), TargetVP: uint32(s.byte() % 5), DownstreamPage: uint32(s.byte() % 6)}))
	case 13:
		s.post(proto.Encode(proto.CloseChannel{RelID: relid()}))
	case 14:
		s.post(proto.Encode(proto.RelIDReleased{RelID: relid()}))
	case 15:
		s.post(proto.Encode(proto.ModifyChannel{RelID: relid(), TargetVP: uint32(s.byte() % 5)}))
	case 16:
		s.post(proto.Encode(proto.Unload{}))
	case 17: // the rings' words and a signal
		w, err := s.mem.Word(guest.GPA(20+uint64(s.byte()%6))*guest.PageSize + guest.GPA(s.byte()%32)*4)
		if err == nil {
			w.Store(s.word())
		}
		s.fake.Signal(0x2000 | hv.ConnectionID(relid()))
	case 18: // the host
		d := s.devs[int(s.byte())%len(s.devs)]
		switch s.byte() % 4 {
		case 0:
			s.srv.Remove(d)
		case 1:
			s.srv.Offer(d)
		case 2:
			s.srv.Reset()
		case 3:
			s.settle()
		}
	case 19:
		if s.byte()&1 == 0 {
			s.fake.Hold()
		} else {
			s.fake.Unhold()
		}
	}
}

// FuzzServer runs scripts. The server may neither panic nor hang; it says only
// what it may say, and not more often than it was asked; and whatever happened
// before, a new guest finds a bus as after power-on.
func FuzzServer(f *testing.F) {
	f.Add([]byte{2, 7, 0, 4, 0, 6, 2, 1, 1, 1, 0, 11, 1, 1, 0, 2, 0, 18, 0, 3, 13, 1, 0, 10, 1, 1, 0, 16, 0})
	f.Add([]byte{2, 7, 0, 4, 0, 19, 0, 6, 2, 1, 1, 1, 0, 11, 1, 1, 0, 2, 0, 18, 0, 2, 19, 1})
	f.Add([]byte{2, 0, 1, 0, 4, 1, 8, 1, 2, 1, 0, 64, 0, 0, 0, 0, 0, 0, 0, 9, 2, 4, 30, 31, 32, 33, 0, 18, 0, 0, 14, 1, 0})
	f.Add([]byte{2, 7, 0, 4, 0, 6, 2, 0, 1, 1, 0, 11, 1, 1, 0, 2, 0, 17, 0, 0, 255, 255, 0, 0, 1, 18, 0, 0, 13, 1, 0, 14, 1, 0, 18, 0, 1})
	mem, err := guest.New(guest.Region{Base: 0, Size: 64 * guest.PageSize})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { mem.Close() })
	f.Fuzz(func(t *testing.T, in []byte) {
		fake := vmbustest.NewFake(envVPs)
		defer fake.Close()
		s := &script{t: t, in: in, fake: fake, mem: mem, devs: [3]*device{echo(1), echo(2), quiet(3)},
			asked: map[proto.MessageType]int{}, got: map[proto.MessageType]int{}}
		var err error
		if s.srv, err = vmbus.NewServer(vmbus.Config{Host: fake, Memory: mem, VPs: envVPs, Logf: t.Logf}); err != nil {
			t.Fatal(err)
		}
		fake.Attach(s.record, func(hv.VPIndex, uint16) {})
		for _, d := range s.devs {
			s.srv.Offer(d)
		}
		watchdog := time.AfterFunc(20*time.Second, func() { panic("the server hangs") })
		for len(s.in) > 0 {
			s.step()
		}
		fake.Unhold()
		s.srv.Reset()
		for _, d := range s.devs {
			if serving, _ := d.counts(); serving != 0 {
				t.Fatal("serving after Reset")
			}
		}
		st := s.srv.Status()
		if st.Connected || len(st.Channels) > len(s.devs) {
			t.Fatalf("%+v", st)
		}
		for _, c := range st.Channels {
			if c.State != vmbus.StatePending {
				t.Fatalf("after Reset: %+v", c)
			}
		}
		s.srv.Close()
		watchdog.Stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.bad != "" {
			t.Fatal(s.bad)
		}
		for typ, n := range s.got {
			if typ != proto.MsgOfferChannel && typ != proto.MsgRescindChannelOffer && n > s.asked[typ] {
				t.Fatalf("%d times %v, asked %d times", n, typ, s.asked[typ])
			}
		}
	})
}
