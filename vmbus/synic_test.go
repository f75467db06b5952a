package vmbus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// realEnv is a server and a guest on a real partition.
func realEnv(t *testing.T, vps int) (*vmbus.Server, *vmbustest.Guest, *synictest.Guest, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	p := synictest.New(t, vps, func(c *synic.Config) { c.Logf = nil })
	srv, err := vmbus.NewServer(vmbus.Config{Host: vmbus.PartitionHost(p.Partition), Memory: p.Memory, VPs: vps, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	m := vmbustest.NewSynIC(p)
	g := vmbustest.NewGuest(m, p.Memory)
	t.Cleanup(func() {
		srv.Close()
		g.Close()
		m.Close()
	})
	return srv, g, p, ctx
}

// The whole path over a real SynIC: hypercalls, message slots with EOM, event
// flags; more offers than a port has buffers; packets; close, rescind, unload.
func TestOverRealSynIC(t *testing.T) {
	srv, g, _, ctx := realEnv(t, 2)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d := echo(0)
	check(srv.Offer(d))
	for i := range byte(60) {
		check(srv.Offer(quiet(i)))
	}
	for range 3 {
		check(g.Boot(ctx))
		if g.Version() != proto.Version5_3 || len(g.Channels()) != 61 {
			t.Fatalf("version %v, %d channels", g.Version(), len(g.Channels()))
		}
		c, err := g.Find(ctx, d.offer.Type, d.offer.Instance, 0)
		check(err)
		check(c.Open(ctx, vmbustest.OpenOptions{}))
		for vp := range uint32(2) {
			check(c.Modify(ctx, vp))
			for i := range uint64(200) {
				want := bytes.Repeat([]byte{byte(i)}, 64)
				if b, err := c.Request(ctx, i, want); err != nil || !bytes.Equal(b, want) {
					t.Fatal(err)
				}
			}
		}
		check(c.Close(ctx))
		id, _, err := c.NewBuffer(ctx, 500)
		check(err)
		check(c.Teardown(ctx, id))
		hot := echo(200)
		check(srv.Offer(hot))
		h, err := g.Find(ctx, hot.offer.Type, hot.offer.Instance, 0)
		check(err)
		check(h.Open(ctx, vmbustest.OpenOptions{}))
		check(srv.Remove(hot))
		<-h.Rescinded()
		check(g.Unload(ctx))
	}
	// Not even the slots of a guest that reset hold an old message.
	check(g.Boot(ctx))
	srv.Reset()
	g.Kexec()
	check(g.Boot(ctx))
	if s := g.Stray(); len(s) != 0 {
		t.Errorf("stray %v", s)
	}
}

// Several channels on several VPs, busy at the same time, with large packets.
func TestHammerOverRealSynIC(t *testing.T) {
	srv, g, _, ctx := realEnv(t, 4)
	devs := []*device{echo(1), echo(2), echo(3)}
	for _, d := range devs {
		if err := srv.Offer(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n, d := range devs {
		wg.Go(func() {
			for round := range 5 {
				c, err := g.Find(ctx, d.offer.Type, d.offer.Instance, 0)
				if err != nil {
					t.Error(err)
					return
				}
				vp := uint32((n + round) % 4)
				if err := c.Open(ctx, vmbustest.OpenOptions{TargetVP: &vp}); err != nil {
					t.Error(err)
					return
				}
				const total = 300
				var send sync.WaitGroup
				send.Go(func() { // keeps both rings full
					for i := range uint64(total) {
						b := make([]byte, 8+int(i*37%4000))
						binary.LittleEndian.PutUint64(b, i)
						if err := c.Send(ctx, &ring.Packet{Type: proto.PacketInBand, Flags: 1, TransactionID: i, Payload: b}); err != nil {
							t.Error(err)
							return
						}
					}
				})
				var p ring.Packet
				for i := range uint64(total) {
					if err := c.Recv(ctx, &p); err != nil || p.TransactionID != i || binary.LittleEndian.Uint64(p.Payload) != i {
						t.Errorf("completion %d: %d, %v", i, p.TransactionID, err)
						return
					}
				}
				send.Wait()
				if err := c.Close(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A host below 5.0 has no connection 4: the guest is told so by the hypercall,
// and goes on to the next version.
func TestOldHostHasNoConnection4(t *testing.T) {
	p := synictest.New(t, 1, nil)
	srv, err := vmbus.NewServer(vmbus.Config{Host: vmbus.PartitionHost(p.Partition), Memory: p.Memory, VPs: 1, MaxVersion: proto.Version4_1})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	p.BringUp(vmbus.SINT)
	b := proto.Encode(proto.InitiateContact{Version: proto.Version5_0, Interrupt: 2})
	if st := p.VPs[0].PostMessage(vmbus.MessageConnection4, hv.MessageVMBus, b); st != hv.StatusInvalidConnectionID {
		t.Errorf("connection 4: %v", st)
	}
	if st := p.VPs[0].PostMessage(vmbus.MessageConnection, hv.MessageVMBus, b); st != hv.StatusSuccess {
		t.Errorf("connection 1: %v", st)
	}
}
