package synic

import (
	"encoding/binary"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// A hypercall is one entry of the dispatch table. All calls there are so far
// are simple ones: no list, no variable header.
type hypercall struct {
	privilege hv.Privileges
	in, out   uint64 // bytes of parameters
	noFast    bool   // the parameters do not fit the registers
}

// maxInput is the most bytes of input of any call, maxOutput of output.
const (
	maxInput  = hv.PostMessageSize
	maxOutput = 8
)

var (
	notifyLongSpinWait   = hypercall{in: 8}
	postMessage          = hypercall{privilege: hv.PostMessages, in: hv.PostMessageSize, noFast: true}
	signalEvent          = hypercall{privilege: hv.SignalEvents, in: 8}
	extQueryCapabilities = hypercall{privilege: hv.EnableExtendedHypercalls, out: 8, noFast: true}
)

func lookupHypercall(code hv.HypercallCode) *hypercall {
	switch code {
	case hv.CallNotifyLongSpinWait:
		return &notifyLongSpinWait
	case hv.CallPostMessage:
		return &postMessage
	case hv.CallSignalEvent:
		return &signalEvent
	case hv.CallExtQueryCapabilities:
		return &extQueryCapabilities
	}
	return nil
}

// call performs a call whose input value and privilege have been checked. It
// is a switch so that the parameters stay on the stack.
func (p *Partition) call(h *hypercall, in *[maxInput]byte, out *[maxOutput]byte) hv.Status {
	switch h {
	case &postMessage:
		return p.callPostMessage(in)
	case &signalEvent:
		return p.callSignalEvent(binary.LittleEndian.Uint64(in[:]))
	case &notifyLongSpinWait:
		// The host's scheduler preempts VPs without advice, so there is nothing
		// to do, and the call never fails.
		return hv.StatusSuccess
	case &extQueryCapabilities:
		// There are no extended hypercalls but this one.
		binary.LittleEndian.PutUint64(out[:], 0)
		return hv.StatusSuccess
	}
	panic("synic: a hypercall in the table without its code")
}

// Hypercall performs a hypercall of a legal environment (see Trap for what
// that is). inGPA and outGPA are the two parameter registers: guest physical
// addresses, or for a fast call the parameters themselves. vp is the caller.
//
// The checks, in this order; the TLFS leaves the order open but prefers
// "access denied":
//
//   - hv.StatusInvalidHypercallCode: no such call
//   - hv.StatusAccessDenied: the partition lacks the privilege
//   - hv.StatusInvalidHypercallInput: reserved bits or the nested bit, a list
//     or a variable header the call does not have, a fast call of one that has
//     no fast form
//   - hv.StatusInvalidAlignment: parameters not aligned to 8 bytes, crossing a
//     page, outside RAM
//   - those of the call itself, with the access check already done
//
// The input is read once. The status of a call may come from the host end of
// a connection.
func (p *Partition) Hypercall(vp hv.VPIndex, in hv.Input, inGPA, outGPA uint64) hv.Result {
	return hv.MakeResult(p.hypercallStatus(in, inGPA, outGPA), 0)
}

func (p *Partition) hypercallStatus(in hv.Input, inGPA, outGPA uint64) hv.Status {
	if p.dead.Load() {
		return hv.StatusInvalidPartitionState
	}
	h := lookupHypercall(in.Code())
	switch {
	case h == nil:
		return hv.StatusInvalidHypercallCode
	case !p.has(h.privilege):
		return hv.StatusAccessDenied
	case in&(hv.InputReserved|hv.InputNested) != 0,
		in.RepCount() != 0, in.RepStart() != 0, in.VarSize() != 0,
		in.Fast() && h.noFast:
		return hv.StatusInvalidHypercallInput
	}
	var input [maxInput]byte
	var output [maxOutput]byte
	if in.Fast() {
		binary.LittleEndian.PutUint64(input[0:], inGPA)
		binary.LittleEndian.PutUint64(input[8:], outGPA)
		return p.call(h, &input, &output)
	}
	if !p.legalParameters(inGPA, h.in) || !p.legalParameters(outGPA, h.out) {
		return hv.StatusInvalidAlignment
	}
	if h.in > 0 && p.cfg.Memory.ReadAt(input[:h.in], guest.GPA(inGPA)) != nil {
		return hv.StatusInvalidAlignment
	}
	st := p.call(h, &input, &output)
	if st == hv.StatusSuccess && h.out > 0 && p.cfg.Memory.WriteAt(output[:h.out], guest.GPA(outGPA)) != nil {
		return hv.StatusInvalidAlignment
	}
	return st
}

// legalParameters checks the place of a parameter block (TLFS "Alignment
// Requirements"). A block of no bytes may be anywhere.
func (p *Partition) legalParameters(a, size uint64) bool {
	return size == 0 ||
		a%8 == 0 && a%guest.PageSize+size <= guest.PageSize && p.cfg.Memory.Contains(guest.GPA(a), size)
}

// callPostMessage is HvCallPostMessage. Its checks come in the order of the
// TLFS's table of return values: connection id, port, parameters, buffers, VP,
// SynIC. Reserved bits of the id make an unknown id; the reserved field counts
// as a parameter.
func (p *Partition) callPostMessage(b *[hv.PostMessageSize]byte) hv.Status {
	in := hv.DecodePostMessage(b)
	c := p.lookup(in.ConnectionID)
	if c == nil {
		return hv.StatusInvalidConnectionID
	}
	defer c.leave()
	t := c.port
	switch {
	case t.dead.Load(), t.owner.dead.Load(), t.typ != portMessage:
		return hv.StatusInvalidPortID
	case !validMessage(in.MessageType, in.PayloadSize), in.Reserved != 0:
		return hv.StatusInvalidParameter
	}
	m := hv.Message{Type: in.MessageType, Size: uint8(in.PayloadSize)}
	copy(m.Payload[:m.Size], in.Payload[:])
	return t.post(t.vp, &m)
}

// callSignalEvent is HvCallSignalEvent, with its checks in the order of the
// TLFS's table.
func (p *Partition) callSignalEvent(v uint64) hv.Status {
	in := hv.DecodeSignalEvent(v)
	c := p.lookup(in.ConnectionID)
	if c == nil {
		return hv.StatusInvalidConnectionID
	}
	defer c.leave()
	t := c.port
	switch {
	case t.dead.Load(), t.owner.dead.Load(), t.typ != portEvent:
		return hv.StatusInvalidPortID
	case in.Reserved != 0:
		return hv.StatusInvalidParameter
	}
	return t.signal(in.FlagNumber)
}
