package vmbustest

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
)

// An ICVersion is a version of an integration component's framework or
// messages.
type ICVersion struct{ Major, Minor uint16 }

// What Linux accepts (drivers/hv/hv_util.c), in its order.
var (
	LinuxFrameworks = []ICVersion{{3, 0}, {1, 0}}
	LinuxShutdown   = []ICVersion{{3, 2}, {3, 1}, {3, 0}, {1, 0}}
	LinuxTimeSync   = []ICVersion{{4, 0}, {3, 0}, {1, 0}}
	LinuxHeartbeat  = []ICVersion{{3, 0}, {1, 0}}
)

// An IC answers one integration component as hv_utils does: the request goes
// back with a status and the response flags.
type IC struct {
	Frameworks []ICVersion // nil means LinuxFrameworks
	Messages   []ICVersion

	// Handle sees a request's type and body, may change the body, and returns
	// the status. nil does nothing with either.
	Handle func(typ uint16, version ICVersion, body []byte) (status uint32)

	// Mangle, if set, changes a whole answer before it goes out; nil sends
	// nothing.
	Mangle func(answer []byte) []byte
}

// Offsets in a packet's payload: a pipe header of 8 bytes, then icmsg_hdr.
const (
	icType    = 12
	icMajor   = 14
	icSize    = 18
	icStatus  = 20
	icFlags   = 25
	icBody    = 28
	icTwoVers = icBody + 8 + 8
)

// Serve answers requests until ctx ends or the channel goes away, and returns
// why it stopped.
func (ic *IC) Serve(ctx context.Context, c *Channel) error {
	var p ring.Packet
	for {
		if err := c.Recv(ctx, &p); err != nil {
			return err
		}
		if p.Type != proto.PacketInBand || p.WantsCompletion() || p.TransactionID != 0 || len(p.Payload) < icBody {
			return fmt.Errorf("%v packet, flags %#x, transaction %#x, %d bytes", p.Type, p.Flags, p.TransactionID, len(p.Payload))
		}
		b := append([]byte(nil), p.Payload...)
		size := binary.LittleEndian.Uint32(b[4:])
		if binary.LittleEndian.Uint32(b) != 1 || uint64(size)+8 > uint64(len(b)) || int(size) != 20+int(binary.LittleEndian.Uint16(b[icSize:])) {
			return fmt.Errorf("pipe header %x of %d bytes", b[:8], len(b))
		}
		typ := binary.LittleEndian.Uint16(b[icType:])
		if typ == 0 {
			if err := ic.negotiate(b); err != nil {
				return err
			}
		} else if ic.Handle != nil {
			v := ICVersion{binary.LittleEndian.Uint16(b[icMajor:]), binary.LittleEndian.Uint16(b[icMajor+2:])}
			binary.LittleEndian.PutUint32(b[icStatus:], ic.Handle(typ, v, b[icBody:8+size]))
		}
		b[icFlags] = 1 | 4
		if ic.Mangle != nil {
			if b = ic.Mangle(b); b == nil {
				continue
			}
		}
		if err := c.Send(ctx, &ring.Packet{Type: proto.PacketInBand, TransactionID: p.TransactionID, Payload: b}); err != nil {
			return err
		}
	}
}

// negotiate is vmbus_prep_negotiate_resp.
func (ic *IC) negotiate(b []byte) error {
	fw, msg := int(binary.LittleEndian.Uint16(b[icBody:])), int(binary.LittleEndian.Uint16(b[icBody+2:]))
	if len(b) < icBody+8+4*(fw+msg) || fw+msg < 2 {
		return fmt.Errorf("negotiation of %d and %d versions in %d bytes", fw, msg, len(b))
	}
	offered := func(at, n int) (v []ICVersion) {
		for i := range n {
			o := icBody + 8 + 4*(at+i)
			v = append(v, ICVersion{binary.LittleEndian.Uint16(b[o:]), binary.LittleEndian.Uint16(b[o+2:])})
		}
		return v
	}
	choose := func(mine, theirs []ICVersion) (ICVersion, bool) {
		for _, m := range mine {
			for _, t := range theirs {
				if m == t {
					return m, true
				}
			}
		}
		return ICVersion{}, false
	}
	mine := ic.Frameworks
	if mine == nil {
		mine = LinuxFrameworks
	}
	f, okF := choose(mine, offered(0, fw))
	m, okM := choose(ic.Messages, offered(fw, msg))
	n := uint16(0)
	if okF && okM {
		n = 1
	}
	binary.LittleEndian.PutUint16(b[icSize:], 0x10)
	binary.LittleEndian.PutUint16(b[icBody:], n)
	binary.LittleEndian.PutUint16(b[icBody+2:], n)
	for i, v := range []ICVersion{f, m} {
		binary.LittleEndian.PutUint16(b[icBody+8+4*i:], v.Major)
		binary.LittleEndian.PutUint16(b[icBody+10+4*i:], v.Minor)
	}
	if len(b) < icTwoVers {
		return fmt.Errorf("answer of %d bytes", len(b))
	}
	return nil
}
