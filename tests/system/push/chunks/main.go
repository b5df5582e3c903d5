// A registry that says how much of an upload it has and takes the rest, as OCI's distribution specification describes;
// docker-registry does not. It keeps everything in memory.
package main

import (
	"flag"
	"log"
	"net/http"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

func main() {
	address := flag.String("address", "127.0.0.1:0", "host and port to listen on")
	flag.Parse()
	log.Fatal(http.ListenAndServe(*address, ociserver.New(ocimem.New(), nil)))
}
