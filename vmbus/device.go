package vmbus

import (
	"context"
	"errors"

	"github.com/hvpost/hvpost/vmbus/proto"
)

// An Offer describes a channel to the guest.
type Offer struct {
	Name     string // for people: in logs and in Status
	Type     proto.GUID
	Instance proto.GUID

	Flags         proto.OfferFlags
	UserDefined   [proto.UserDataSize]byte // see proto.PipeUserDefined
	MMIOMegabytes uint16
	MMIOOptional  uint16 // MiB

	// SubChannel is the index of a sub-channel and 0 for a primary one.
	// Channel.OfferSub sets it.
	SubChannel uint16

	// MaxPacket bounds the packets of the guest in bytes, descriptor included
	// and trailer not; a larger one ends the channel. 0 means
	// ring.DefaultMaxPacket.
	MaxPacket int
}

// A Device is the host's end of one offered channel. Devices are compared with
// ==, so they are usually pointers.
type Device interface {
	// Offer is called once, when the device is offered.
	Offer() Offer

	// Serve runs the device on an open channel, in a goroutine of its own. It
	// returns after ctx is done (the guest closed the channel, or the device
	// is removed), and only when nothing of it touches the guest's memory any
	// more. Returning earlier leaves the channel dead until the guest closes
	// it; returning ErrRescind takes the device away from the guest. The guest
	// may open the channel again afterwards.
	Serve(ctx context.Context, ch *Channel) error
}

// ErrRescind is what Serve returns when the device has ended for good: the
// channel is rescinded and the device forgotten, as by Server.Remove.
var ErrRescind = errors.New("device ended")

// Errors of Server and Channel.
var (
	ErrClosed    = errors.New("vmbus server closed")
	ErrDuplicate = errors.New("a device of this type and instance is offered already")
	ErrNoChannel = errors.New("all 2047 channels are in use")
	ErrNotOffer  = errors.New("device is not offered")
	ErrNoGPADL   = errors.New("no such GPADL")
)

// subDevice is the device of a sub-channel.
type subDevice struct {
	offer Offer
	serve func(context.Context, *Channel) error
}

func (d *subDevice) Offer() Offer                                 { return d.offer }
func (d *subDevice) Serve(ctx context.Context, ch *Channel) error { return d.serve(ctx, ch) }
