// Package proto is the VMBus wire format: channel messages, the offer, GPADL
// ranges and packet descriptors, as both ends put them into SynIC messages and
// rings.
//
// It is a leaf. It knows nothing of who sends what when (package vmbus), of
// ring indices (package ring) or of a device's own protocol. Every struct has
// the fields of the specification in its order, without implicit padding;
// encoding is little-endian and done by code, never by laying a Go struct over
// guest RAM. Fields named _ are reserved: zero when sent, ignored when
// received, because guests leave garbage in them.
package proto
