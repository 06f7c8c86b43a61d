"""The plugins that come with the service, on the same entry-point group as everybody's."""
