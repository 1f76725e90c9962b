// Sets the chosen theme before the first paint, so that a dark page never flashes white.
try {
  const theme = localStorage.getItem("gradspectra.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage may be forbidden; the system's preference holds then
}
